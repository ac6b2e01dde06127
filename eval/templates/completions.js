"use strict";
// Searches, filters and pages the training completions. Texts are set as text and never as HTML.
(() => {
  const data = document.getElementById("completion-data");
  if (!data) return;
  const PAGE = 16;  // completions
  const { rows, prompts, references, distributions, numbers } = JSON.parse(data.textContent);
  const root = document.getElementById("completions");
  const list = root.querySelector(".list");
  const controls = root.querySelector(".controls");
  const [search, step, distribution, verdict] = ["search", "step", "distribution", "verdict"].map(
    (name) => controls.querySelector(`[name=${name}]`));
  const count = root.querySelector(".count");
  const buttons = root.querySelectorAll(".pages button");
  const VERDICTS = { right: 1, wrong: 0, unscored: -1 };
  let found = rows;
  let page = 0;

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const text = (value) => {
    const made = element("pre", value);
    made.dir = "auto";
    return made;
  };
  const labeled = (name, body, kind) => {
    const made = element("div", "", kind);
    made.append(name, body);
    return made;
  };
  const verdictOf = (row) => [element("span", "not scored"), element("span", "✗ wrong", "bad"),
    element("span", "✓ right", "good")][row.correct + 1];

  const completion = ([row, copies]) => {
    const head = element("div", "", "label");
    const facts = row.numbers.map((value, at) => (value === null ? "" : `${numbers[at]} ${value}`));
    if (copies > 1) facts.unshift(`${copies} times`);
    head.append(element("span", facts.filter(Boolean).join(" · ")));
    if (row.correct !== null) head.append(verdictOf(row));
    return labeled(head, text(row.completion), "completion");
  };

  const article = (group) => {  // completions of one prompt at one step
    const made = element("article", "");
    const [row] = group;
    const facts = [row.step === null ? "" : `step ${row.step}`, distributions[row.distribution] ?? ""];
    const reference = references[row.reference];
    if (reference !== undefined) facts.push(`reference: ${reference}`);
    const pair = element("div", "", "pair");
    const right = element("div", "");
    const distinct = new Map();  // a completion that occurs several times is shown once
    for (const each of group) {
      const key = JSON.stringify([each.completion, each.correct, each.numbers]);
      distinct.set(key, [each, (distinct.get(key)?.[1] ?? 0) + 1]);
    }
    right.append(...[...distinct.values()].map(completion));
    pair.append(labeled(element("div", facts.filter(Boolean).join(" · "), "label"), text(prompts[row.prompt])), right);
    made.append(pair);
    return made;
  };

  const grouped = (shown) => {
    const groups = [];
    for (const row of shown) {
      const last = groups.at(-1)?.[0];
      if (last && last.step === row.step && last.prompt === row.prompt) groups.at(-1).push(row);
      else groups.push([row]);
    }
    return groups;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...grouped(found.slice(page * PAGE, (page + 1) * PAGE)).map(article));
    count.textContent = found.length
      ? `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} · page ${page + 1} of ${pages}`
      : "No completion matches.";
    buttons[0].disabled = page === 0;
    buttons[1].disabled = page === pages - 1;
  };

  const filter = () => {
    const words = search.value.toLowerCase();
    found = rows.filter((row) =>
      (!step.value || row.step === Number(step.value)) &&
      (!distribution.value || row.distribution === Number(distribution.value)) &&
      (!verdict.value || row.correct === VERDICTS[verdict.value]) &&
      (!words || [row.completion, prompts[row.prompt], references[row.reference] ?? ""].some(
        (part) => part.toLowerCase().includes(words))));
    page = 0;
    show();
  };

  let waiting;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
  for (const select of [step, distribution, verdict]) select.addEventListener("change", filter);
  buttons.forEach((button, at) => button.addEventListener("click", () => {
    page += at ? 1 : -1;
    show();
    controls.scrollIntoView({ block: "nearest" });
  }));
  controls.hidden = false;
  show();
})();
