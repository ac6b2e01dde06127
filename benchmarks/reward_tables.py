"""What `benchmarks/reward.py` prints of its jobs, and the claims it makes of them."""

from collections.abc import Sequence

import numpy as np
from shared import bootstrap


def over_seeds(values: Sequence[float]) -> tuple[float, list[float]]:
    """Return the mean over seeds and its interval."""
    return bootstrap(np.mean, values)


def show(found: tuple[float, list[float]], sign: str = "") -> str:
    mean, (low, high) = found
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def summarise_flips(jobs: dict[float, list[dict]]) -> list[dict]:
    """Print what wrong labels do and return the claims."""
    claims = []
    print(f"\nflips: accuracy on clean held-out pairs, {len(next(iter(jobs.values())))} seeds")
    claims += accuracies_by_share(jobs, "accuracy, {}")
    print(f"{'AUC of strength':15}", end="")
    for share, rows in jobs.items():
        if rows[0]["auc"] is None:
            print(" " * 26, end="")
            continue
        mean, ci = over_seeds([row["auc"] for row in rows])
        print(f"{show((mean, ci)):>26}", end="")
        claims.append(
            {"claim": f"detection AUC of strength, {share:.0%} flips", "value": mean, "ci": ci, "seeds": len(rows)}
        )
    print()
    return claims


def accuracies_by_share(jobs: dict[float, list[dict]], claim: str) -> list[dict]:
    """Print a table of accuracies, a column a share of wrong labels, and return the claims."""
    claims = []
    print(f"{'':15}" + "".join(f"{share:26.0%}" for share in jobs))
    for name in next(iter(jobs.values()))[0]["accuracy"]:
        cells = [over_seeds([row["accuracy"][name] for row in rows]) for rows in jobs.values()]
        print(f"{name:15}" + "".join(f"{show(cell):>26}" for cell in cells))
        for (share, rows), (mean, ci) in zip(jobs.items(), cells, strict=True):
            text = f"{claim.format(name)}, {share:.0%} flips"
            claims.append({"claim": text, "value": mean, "ci": ci, "seeds": len(rows)})
    return claims


def summarise_votes(jobs: dict[float, list[dict]]) -> list[dict]:
    """Print what treatments by votes do where these are free and return the claims."""
    print(f"\nvotes: as flips, with votes that cost nothing, {len(next(iter(jobs.values())))} seeds")
    return accuracies_by_share(jobs, "accuracy, {} by free votes")


def summarise_human(jobs: list[dict]) -> list[dict]:
    """Print how often each model agrees with people and return the claims."""
    claims = []
    print(f"\nhuman: accuracy on held-out questions, {len(jobs)} seeds, each a split of its own")
    print(f"{'':19}{'accuracy':>25}{'less vanilla':>26}")
    for name in jobs[0]["accuracy"]:
        values, vanilla = (np.array([job["accuracy"][of] for job in jobs]) for of in (name, "vanilla"))
        mean, less = over_seeds(values), over_seeds(values - vanilla)
        print(f"{name:19}{show(mean):>25}{show(less, '+'):>26}")
        claims.append(
            {"claim": f"accuracy on human pairs, {name}", "value": mean[0], "ci": mean[1], "seeds": len(jobs)}
        )
        text = f"accuracy on human pairs, {name} less vanilla"
        claims.append({"claim": text, "value": less[0], "ci": less[1], "seeds": len(jobs)})
    return claims


def summarise_shift(jobs: list[dict]) -> list[dict]:
    """Print how accuracy falls as the policy moves and return the claims."""
    claims = []
    levels = [row["level"] for row in jobs[0]["levels"]]
    table = {
        name: np.array([[level["accuracy"][name] for level in job["levels"]] for job in jobs])  # (seeds, levels)
        for name in jobs[0]["levels"][0]["accuracy"]
    }
    print(f"\nshift: accuracy on the policy's own pairs after so many steps of GRPO, {len(jobs)} seeds")
    print(f"{'':19}" + "".join(f"{level:8}" for level in levels) + f"{'mean of moved':>25}{'less vanilla':>26}")
    for what, digits in (("gold", 2), ("length", 1), ("effective_pairs", 0)):
        means = np.mean([[level[what] for level in job["levels"]] for job in jobs], axis=0)
        print(f"{what:19}" + "".join(f"{mean:8.{digits}f}" for mean in means))
    moved = {name: values[:, 1:].mean(1) for name, values in table.items()}
    for name, values in table.items():
        mean, less = over_seeds(moved[name]), over_seeds(moved[name] - moved["vanilla"])
        cells = "".join(f"{value:8.3f}" for value in values.mean(0))
        print(f"{name:19}{cells}{show(mean):>25}{show(less, '+'):>26}")
        claims.append(
            {"claim": f"accuracy on moved pairs, {name}", "value": mean[0], "ci": mean[1], "seeds": len(jobs)}
        )
        for level, column in zip(levels, values.T, strict=True):
            value, ci = over_seeds(column)
            claims.append(
                {"claim": f"accuracy, {name}, after {level} steps", "value": value, "ci": ci, "seeds": len(jobs)}
            )
    for name in table:
        for other in ("vanilla", "vanilla, half", "ensemble"):
            if name != other:
                value, ci = over_seeds(moved[name] - moved[other])
                goal = {"goal": "> 0", "met": ci[0] > 0} if name == "metarm" and other != "vanilla, half" else {}
                text = f"accuracy on moved pairs, {name} less {other}"
                claims.append({"claim": text, "value": value, "ci": ci, "seeds": len(jobs), **goal})
    return claims
