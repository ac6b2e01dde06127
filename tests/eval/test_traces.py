import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import metatune.eval.pages
from metatune.eval.report import write_report
from metatune.eval.traces import MOST_TRACES, STRONGEST, read_traces, write_traces_page

UNKNOWN = "\N{EN DASH}"
TEMPLATE = Path(metatune.eval.pages.__file__).parent / "templates" / "traces.html"


def trace(**changes) -> dict:
    """Two episodes forward, one back, the third not measured, and the outcome."""
    return {
        "step": 45,
        "distribution": "sums",
        "prompt": "What is 12 + 12?",
        "episodes": ["12 + 12 = 23\n\n", "Wait, it ends with 4.\n\n", "Or does it?\n\n", "Hm.\n\n", "answer 24"],
        "values": [0.25, 0.0, 0.75, 0.75, None, 1.0],
        "correct": True,
        **changes,
    }


class Page(HTMLParser):
    """What a reader meets: tags, classes, the changes and texts of the episodes, and all words."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.elements, self.words, self._open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data.strip())

    def of(self, tag: str, *names: str) -> list[dict]:
        """Attributes of the elements of a tag that have all of these classes."""
        return [
            attributes
            for found, attributes in self.elements
            if found == tag and set(names) <= set((attributes.get("class") or "").split())
        ]

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)


def page_of(traces, folder: Path) -> Page:
    return Page(write_traces_page(traces, folder / "traces.html").read_text(encoding="utf-8"))


def episodes_of(page: Page) -> list[tuple[str, int]]:
    """The kind of each episode and the strength of its colour, in percent."""
    return [
        (row["class"].split()[1], int(re.fullmatch(r"--strength: (\d+)%", row["style"])[1]))
        for row in page.of("li", "episode")
    ]


# ---- what the page shows ----


def test_every_episode_is_coloured_by_its_progress_and_says_it_in_a_number(tmp_path):
    page = page_of([trace()], tmp_path)
    full = STRONGEST
    assert episodes_of(page) == [
        ("fall", round(full * 0.25**0.5)),
        ("rise", round(full * 0.75**0.5)),
        ("level", 0),
        ("unknown", 0),
        ("unknown", 0),
    ]
    for words in (
        "\N{MINUS SIGN}0.25 1: 0.25 → 0.00 12 + 12 = 23",
        "+0.75 2: 0.00 → 0.75 Wait, it ends with 4.",
        "0.00 3: 0.75 → 0.75 Or does it?",
        f"{UNKNOWN} 4: 0.75 → {UNKNOWN} Hm.",
        f"{UNKNOWN} 5: {UNKNOWN} → 1.00 answer 24",
    ):
        assert words in page.text


def test_the_largest_progress_has_the_strongest_colour(tmp_path):
    page = page_of([trace(episodes=["a", "b", "c"], values=[0, 1, 0, 3])], tmp_path)
    assert episodes_of(page) == [("rise", STRONGEST), ("fall", STRONGEST), ("rise", STRONGEST)]


def test_a_change_that_its_number_does_not_show_has_no_colour(tmp_path):
    page = page_of([trace(episodes=["a", "b"], values=[0.5, 0.5049, 0.5])], tmp_path)
    assert [kind for kind, _ in episodes_of(page)] == ["level", "level"]
    assert "\N{MINUS SIGN}0.00" not in page.text.split("could not be scored")[1]


def test_the_drawing_has_a_point_for_each_known_value_and_lines_between_neighbours(tmp_path):
    page = page_of([trace()], tmp_path)
    _, *points = page.of("circle", "point")  # the first is the legend's
    circles = [(float(point["cx"]), float(point["cy"])) for point in points]
    assert len(circles) == 4 and len(page.of("rect", "outcome")) == 2
    lines = [line for kind in ("fall", "rise", "level") for line in page.of("line", kind)]
    drawn = [line for line in lines if line["x1"] != "0"]  # not the legend's
    ends = [((float(line["x1"]), float(line["y1"])), (float(line["x2"]), float(line["y2"]))) for line in drawn]
    assert ends == [(circles[0], circles[1]), (circles[1], circles[2]), (circles[2], circles[3])]
    heights = [y for _, y in circles]
    assert heights[1] > heights[0] > heights[2] == heights[3], "a larger J stands higher"
    (told,) = [svg["aria-label"] for svg in page.of("svg") if "aria-label" in svg]
    assert told == "J along the episodes: 0.25, 0.00, 0.75, 0.75, unknown, 1.00"


@given(st.lists(st.none() | st.floats(-2, 3), min_size=1, max_size=200))
def test_all_that_is_drawn_stands_within_the_drawing(tmp_path_factory, values):
    folder = tmp_path_factory.getbasetemp() / "drawn"
    page = page_of([trace(episodes=["a"] * (len(values) - 1), values=values)], folder)
    (box,) = [svg for svg in page.of("svg") if "aria-label" in svg]
    width, height = int(box["width"]), int(box["height"])
    assert width < 720
    for tag, attributes in page.elements:
        for name in {"circle": ("cx", "cy"), "line": ("x1", "y1", "x2", "y2"), "text": ("x", "y")}.get(tag, ()):
            assert 0 <= float(attributes[name]) <= (height if "y" in name else width)


@pytest.mark.parametrize(("correct", "verdict"), [(True, "✓ right"), (False, "✗ wrong"), (None, "not scored")])
def test_the_outcome_is_told_in_words(tmp_path, correct, verdict):
    assert verdict in page_of([trace(correct=correct)], tmp_path).text


def test_a_step_is_shown_where_there_is_one(tmp_path):
    assert "trace 1 · step 45 · 5 episodes" in page_of([trace()], tmp_path).text
    page = page_of([trace(step=None, episodes=["a"], values=[0, 1])], tmp_path)
    assert "trace 1 · 1 episode ·" in page.text


@pytest.mark.parametrize("values", [[], [0.3], [None]])
def test_an_empty_completion_is_shown_as_such(tmp_path, values):
    page = page_of([trace(episodes=[], values=values)], tmp_path)
    assert "The completion is empty." in page.text and not page.of("li")


def test_the_facts_are_of_all_traces(tmp_path):
    traces = [
        trace(episodes=["a"], values=[0.2, 1.0]),
        trace(episodes=["a", "b", "c"], values=[0.4, None, None, 0.0], correct=False),
        trace(episodes=["a"], values=[None, None], correct=None),
        trace(episodes=[], values=[], correct=None),
    ]
    text = page_of(traces, tmp_path).text
    assert "Traces 4 Right 1 of 2 scored Episodes a trace 1.2 Mean J, start to end 0.30 → 0.50" in text
    assert "Right 1 of 2 Episodes" in page_of(traces[:2], tmp_path).text
    assert f"start to end {UNKNOWN} → {UNKNOWN}" in page_of(traces[2:], tmp_path).text


def test_of_many_traces_some_are_drawn_and_the_page_says_so(tmp_path):
    many = [trace(prompt=f"problem {number}") for number in range(MOST_TRACES + 5)]
    page = page_of(many, tmp_path)
    assert len(page.of("article")) == page.tags.count("article") == MOST_TRACES
    assert f"{MOST_TRACES} of {MOST_TRACES + 5} traces are shown, drawn at random" in page.text
    source = (tmp_path / "traces.html").read_bytes()
    assert write_traces_page(many, tmp_path / "again.html").read_bytes() == source
    assert "drawn at random" not in page_of(many[:MOST_TRACES], tmp_path).text
    numbers = re.findall(r"problem (\d+)", page.text)
    assert re.findall(r"trace (\d+) ·", page.text) == [str(int(number) + 1) for number in numbers]


def test_a_long_episode_is_cut_and_says_so(tmp_path):
    text = page_of([trace(episodes=["x" * 5000], values=[0, 1])], tmp_path).text
    assert "[… 1000 more characters]" in text and "x" * 4001 not in text


# ---- completions are data ----

ATTACK = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7*7 }}&amp;\"'"


def test_what_a_model_wrote_is_escaped(tmp_path):
    page = page_of([trace(prompt=ATTACK, distribution=ATTACK, episodes=[ATTACK], values=[0, 1])], tmp_path)
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.words.count(ATTACK) == 3, "the prompt, the name and the episode, as they are"


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=30))
def test_no_text_breaks_the_page(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "any"
    plain = page_of([trace(episodes=["a"], values=[0, 1])], folder).tags
    assert page_of([trace(prompt=text, distribution=text, episodes=[text], values=[0, 1])], folder).tags == plain


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    source = write_traces_page([trace()], tmp_path / "traces.html").read_text()
    assert not re.search(r"https?:|url\(|@import|@font-face|\b(src|href)=", source)
    assert "default-src 'none'" in source


# ---- it can be read ----


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_every_colour(mode):
    """At least 4.5 to 1, WCAG's AA, for text on the strongest colours, and 3 to 1 for lines."""
    colours = {
        name: tuple(int(modes[mode][at : at + 2], 16) / 255 for at in (1, 3, 5))
        for name, *modes in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", TEMPLATE.read_text())
    }

    def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for name in ("rise", "fall"):
        share = STRONGEST / 100
        tint = tuple(share * c + (1 - share) * card for c, card in zip(colours[name], colours["card"], strict=True))
        assert contrast(colours["ink"], tint) >= 4.5
        assert contrast(colours[f"{name}-line"], colours["card"]) >= 3
    assert contrast(colours["quiet"], colours["card"]) >= 4.5
    assert contrast(colours["quiet"], colours["paper"]) >= 4.5


PROBE = """<script>addEventListener("load", () => {
  const clipped = [...document.querySelectorAll("article")].filter(a => a.scrollWidth > a.clientWidth).length;
  document.title = `width ${document.documentElement.scrollWidth} of ${innerWidth}, ${clipped} clipped`; });
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_phone_need_not_scroll_sideways(tmp_path):
    """As a browser lays it out: only what scrolls on its own is wider than the screen, and nothing is cut off."""
    many = trace(episodes=["line"] * 45, values=[0.5] * 46)
    wide = trace(prompt="x" * 500, distribution="y" * 90, episodes=["z" * 500], values=[0, 1])
    source = write_traces_page([trace(), many, wide], tmp_path / "traces.html").read_text()
    source = re.sub(r"<meta http-equiv[^>]*>", PROBE, source)
    (tmp_path / "inner.html").write_text(source)
    # a browser's window is never as narrow as a phone; a frame can be
    frame = """<iframe src="inner.html" width="344" height="800"></iframe><script>addEventListener("load", () => {
      document.title = document.querySelector("iframe").contentDocument.title; });</script>"""
    (tmp_path / "frame.html").write_text(frame)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    shown = subprocess.run([*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    found = re.findall(r"<title>(width .* clipped)</title>", shown.stdout)
    assert found == ["width 344 of 344, 0 clipped"]


# ---- reading ----


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_traces_are_read_in_order_with_blank_lines_left_out(tmp_path):
    traces = [trace(step=step, prompt="a\u2028b") for step in (1, None, 3)]
    path = write_lines(tmp_path / "traces.jsonl", traces[0], "\n", *traces[1:], "\n")
    assert read_traces(path) == traces
    path.write_text(json.dumps(traces[0], ensure_ascii=False))  # no line end, and a separator that is none of ours
    assert read_traces(path) == traces[:1]


def test_keys_that_the_page_does_not_know_are_left_alone(tmp_path):
    known = trace(ends=[3, 5], regret=0.5)
    assert read_traces(write_lines(tmp_path / "traces.jsonl", known)) == [known]
    page_of([known], tmp_path)


BAD = [
    ('{"step": 1, "epis', r"not JSON"),
    ("[" * 100_000, "not JSON"),
    (json.dumps([1]), "a trace is a JSON object, not list"),
    (json.dumps({"step": 1, "prompt": "p"}), "a trace needs distribution, episodes, values, correct"),
    (json.dumps(trace(step="1")), "step cannot be '1'"),
    (json.dumps(trace(prompt=[{"role": "user"}])), "prompt cannot be"),
    (json.dumps(trace(correct=1.0)), r"correct cannot be 1\.0"),
    (json.dumps(trace(episodes="abc", values=[0] * 4)), "episodes is not a list of texts"),
    (json.dumps(trace(episodes=[1] * 5)), "episodes is not a list of texts"),
    (json.dumps(trace(values=0.5)), "values is not a list of numbers and null"),
    (json.dumps(trace(values=[0, 0, 0, 0, 0, True])), "values is not a list of numbers"),
    (json.dumps(trace(values=[0, 0, 0, 0, 0, float("nan")])), "values is not a list of numbers"),
    (json.dumps(trace(values=[0, 0, 0, 0, 0, float("inf")])), "values is not a list of numbers"),
    (
        json.dumps(trace(values=[0.5])),
        "5 episodes need 6 values, one before the first and one after each; there are 1",
    ),
    (json.dumps(trace(episodes=[])), "0 episodes need 1 values"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "traces.jsonl", trace(), line)
    with pytest.raises(ValueError, match=rf"traces\.jsonl, line 2: .*{message}"):
        read_traces(path)


def test_a_bad_trace_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"trace 2: 5 episodes need 6 values"):
        write_traces_page([trace(), trace(values=[1])], tmp_path / "traces.html")
    with pytest.raises(ValueError, match="there are no traces to show"):
        write_traces_page([], tmp_path / "traces.html")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: cannot be read"):
        read_traces(tmp_path / "nowhere.jsonl")
    (tmp_path / "traces.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"traces\.jsonl: cannot be read"):
        read_traces(tmp_path / "traces.jsonl")


# ---- in the report of a run ----


def test_the_report_links_the_page_of_a_run_that_left_traces(tmp_path):
    write_lines(tmp_path / "traces.jsonl", trace(), trace())
    report = Page(write_report(tmp_path).read_text())
    assert [link["href"] for link in report.of("a")] == ["traces.html"]
    assert "2 traces, with every episode colored by its progress" in report.text
    assert len(Page((tmp_path / "traces.html").read_text()).of("article")) == 2


def test_the_report_says_why_there_is_no_page_of_traces(tmp_path):
    write_lines(tmp_path / "traces.jsonl", trace(), "{")
    report = Page(write_report(tmp_path).read_text())
    assert not report.of("a") and not (tmp_path / "traces.html").exists()
    assert re.search(r"The page of traces: \S*traces\.jsonl, line 2: not JSON", report.text)
    write_lines(tmp_path / "traces.jsonl")
    assert "The page of traces: there are no traces to show." in Page(write_report(tmp_path).read_text()).text


def test_a_run_without_traces_has_no_page_of_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5, "rollout_tokens": 9}\n')
    report = Page(write_report(tmp_path).read_text())
    assert (
        not report.of("a") and "colored by its progress" not in report.text and not (tmp_path / "traces.html").exists()
    )
