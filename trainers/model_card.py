"""The model card of a run: base model, data, enabled methods, and their papers."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

if TYPE_CHECKING:
    from transformers import Trainer as _Mixed  # what it is mixed into
else:
    _Mixed = object

LIBRARIES = ("metatune", "trl", "transformers", "torch", "datasets", "tokenizers")

TEMPLATE = """\
---
{{ card_data }}
---

# {{ model_name }}

{% if base %}This model was trained from {{ base }}{% else %}This model was trained{% endif %}{% if data %} on \
{{ data }}{% endif %} with metatune, on top of [TRL](https://github.com/huggingface/trl).

## Quick start

```python
from transformers import pipeline

{% if is_reward_model -%}
scorer = pipeline("text-classification", model="{{ model_id }}", function_to_apply="none")
print(scorer("The capital of France is Paris.")[0]["score"])
{%- else -%}
generator = pipeline("text-generation", model="{{ model_id }}")
messages = [{"role": "user", "content": "What is 12 * 7 - 5?"}]
print(generator(messages, max_new_tokens=128, return_full_text=False)[0]["generated_text"])
{%- endif %}
```

## Training

Methods:
{% for method in methods %}
- {{ method.name }}{% if method.paper %}: [{{ method.paper.title }}](https://huggingface.co/papers/\
{{ method.paper.id }}){% endif %}
{%- endfor %}
{% for line in lines %}
{{ line }}
{% endfor %}
Versions: {{ versions }}.

## Citations

```bibtex
{% for method in methods if method.paper %}{{ method.paper.citation }}
{% endfor %}{% raw %}@software{vonwerra2020trl,
  title   = {{TRL: Transformers Reinforcement Learning}},
  author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and
             Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url     = {https://github.com/huggingface/trl},
  year    = {2020}
}{% endraw %}
```
"""


class Method(NamedTuple):
    """A method that a run used: its name, and its paper in TRL's format (`title`, `id`, `citation`)."""

    name: str
    paper: dict[str, str]


class NamedModelCard(_Mixed):
    """Mixin that writes the model card; list it before TRL's trainer in the bases.

    TRL's card names only one method, and shows a base model in a local folder as `None`.
    """

    _name: str
    _paper: dict[str, str]
    _tag_names: list[str]

    def _methods(self) -> list[Method]:
        """Return the enabled methods."""
        return [Method(self._name, self._paper)]

    def _card_lines(self) -> list[str]:
        """Return additional lines for the section on training."""
        return []

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the model card, `README.md` in the output folder.

        Args:
            model_name (`str`, *optional*): name of the model.
            dataset_name (`str` or `list[str]`, *optional*): names of the datasets, on the hub or local.
            tags (`str` or `list[str]`, *optional*): tags in addition to the trainer's.
        """
        if not self.is_world_process_zero():
            return
        base = get_config_model_id(self.model.config)
        names = [dataset_name] if isinstance(dataset_name, str) else dataset_name or []
        folder = Path(str(self.args.output_dir))
        data = ModelCardData(
            base_model=base if base and not is_local(base) else None,
            datasets=[name for name in names if not is_local(name)] or None,
            library_name="transformers",
            model_name=model_name,
            tags=sorted(
                {"generated_from_trainer", *([tags] if isinstance(tags, str) else tags or []), *self._tag_names}
            ),
        )
        card = ModelCard.from_template(
            data,
            template_str=TEMPLATE,
            model_name=model_name or folder.name,
            model_id=self.hub_model_id or folder.name,
            base=shown(base, "") if base else None,
            data=", ".join(shown(name, "datasets/") for name in names),
            is_reward_model=getattr(self.model.config, "num_labels", None) == 1,
            methods=self._methods(),
            lines=self._card_lines() + tracked_at(),
            versions=", ".join(f"{library} {version(library)}" for library in LIBRARIES),
        )
        card.save(folder / "README.md")


def is_local(name: str) -> bool:
    """Return whether a model or a dataset is a local folder or file, and not on the hub."""
    return Path(name).exists() or Path(name).is_absolute()


def shown(name: str, kind: str) -> str:
    """Return a link to the hub, or only the last part of a local path, because the card may be published."""
    if is_local(name):
        return f"`{Path(name).resolve().name}` (a local {'folder' if Path(name).is_dir() else 'file'})"
    return f"[{name}](https://huggingface.co/{kind}{name})"


def tracked_at() -> list[str]:
    """Return a line for each tracker that has a page of this run."""
    run = getattr(sys.modules.get("wandb"), "run", None)  # imported if the run logged to it
    pages = {
        "Trackio": get_trackio_space_url(),
        "Comet": get_comet_experiment_url(),
        "Weights & Biases": None if run is None else run.url,
    }
    return [f"Metrics: [{name}]({url})." for name, url in pages.items() if url]
