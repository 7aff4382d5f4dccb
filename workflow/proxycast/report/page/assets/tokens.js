// The token view: colours follow the measure and the step, a cursor tells the numbers of the token it stands on.
const place = document.getElementById("token-data");
if (place) {
  const view = JSON.parse(place.textContent);
  const root = place.closest(".tokens");
  const all = (selector, within = root) => [...within.querySelectorAll(selector)];
  const panesOf = all(".token-panes");
  const last = view.steps.length - 1;
  let measure = all('[data-select="token-measure"]')[0].value;
  let step = view.ends[last];
  // The slider is of the last candidate. One with other steps is shown as it ended.
  const follows = view.steps.map((steps) => String(steps) === String(view.steps[last]));
  const stepOf = (side) => (follows[side] ? step : view.ends[side]);

  function colour() {
    for (const panes of panesOf) {
      const { sides, differences } = view.solutions[Number(panes.dataset.solution)];
      all(".token-pane", panes).forEach((pane, number) => {
        const isDifference = pane.classList.contains("difference");
        const own = isDifference ? differences[stepOf(last)] : sides[number][stepOf(number)];
        const levels = own.levels[measure];
        all(".token", pane).forEach((token, i) => {
          token.className = token.className.replace(/\bl[0-5a-e]\b/, `l${levels[i]}`);
        });
        if (!isDifference) pane.querySelector(".token-step").textContent = stepOf(number);
      });
    }
    const { labels, differences } = view.measures[measure];
    const [ofOne, ofTwo] = all(".token-legend");
    tell(ofOne, labels);
    if (ofTwo) tell(ofTwo, differences);
  }
  function tell(legend, texts) {
    all("li span:last-child", legend).forEach((label, i) => { label.textContent = texts[i]; });
  }

  // --- The cursor: a pane and a token in it. Where both candidates have the same tokens it marks all panes.
  const cursors = new Map(panesOf.map((panes) => [panes, { pane: 0, token: -1 }]));
  const isCompared = (panes) => panes.querySelector(".difference") !== null;
  function move(panes, pane, token) {
    const found = all(".token-pane", panes);
    const to = Math.max(0, Math.min(pane, found.length - 1));
    const count = all(".token", found[to]).length;
    const at = Math.max(0, Math.min(token, count - 1));
    cursors.set(panes, { pane: to, token: at });
    all(".cursor", panes).forEach((old) => old.classList.remove("cursor"));
    found.forEach((one, number) => {
      if (isCompared(panes) || number === to) all(".token", one)[at].classList.add("cursor");
    });
    panes.parentElement.querySelector(".token-status").textContent = sentence(panes, to, at);
    return all(".token", found[to])[at];
  }
  const numbersOf = (own, i) => `rank ${own.rank[i]}, entropy ${own.entropy[i]} nats, `
    + `cross-entropy ${own.cross_entropy[i]} nats, weight ${own.weight[i]}`;
  function sentence(panes, pane, i) {
    const { sides, differences, positions } = view.solutions[Number(panes.dataset.solution)];
    const found = all(".token-pane", panes)[pane];
    const text = all(".token", found)[i].textContent;
    const shown = isCompared(panes) ? sides.map((_, side) => side) : [pane];
    const parts = shown.map((side) => `${view.names[side]}, step ${stepOf(side)}: `
      + numbersOf(sides[side][stepOf(side)], i));
    const by = differences[stepOf(last)]?.contribution[i];
    const share = by === undefined ? [] : [`Contribution in these runs: ${by}`];
    const at = positions[isCompared(panes) ? 0 : pane][i];
    return `${[`“${text}”, position ${at}`, ...parts, ...share].join(".\n")}.`;
  }
  for (const panes of panesOf) {
    panes.addEventListener("keydown", (event) => {
      const { pane, token } = cursors.get(panes);
      const moves = {
        ArrowRight: [pane, token + 1], ArrowLeft: [pane, token - 1], Home: [pane, 0], End: [pane, Infinity],
        ArrowDown: [pane + 1, Math.max(token, 0)], ArrowUp: [pane - 1, Math.max(token, 0)],
      };
      const to = moves[event.key];
      if (!to || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      move(panes, ...to).scrollIntoView({ block: "nearest" });
    });
    panes.addEventListener("focus", () => {
      const { pane, token } = cursors.get(panes);
      if (panes.matches(":focus-visible")) move(panes, pane, Math.max(token, 0));
    });
    const pointed = (event) => {
      const token = event.target.closest(".token-text .token");
      if (!token) return;
      const pane = token.closest(".token-pane");
      move(panes, all(".token-pane", panes).indexOf(pane), all(".token", pane).indexOf(token));
    };
    panes.addEventListener("pointerover", pointed);
    panes.addEventListener("click", pointed);
  }

  document.addEventListener("choose", ({ detail: { name, value } }) => {
    if (name === "token-measure") measure = value;
    else if (name === "token-step") step = value;
    else return;
    colour();
    for (const [panes, { pane, token }] of cursors) if (token >= 0) move(panes, pane, token);
  });

  // --- The table of deciding tokens: those that are shown above are buttons that go there.
  function go(key) {
    const [solution, token] = key.split(":").map(Number);
    const select = all('[data-select="token-solution"]')[0];
    select.value = String(solution);
    select.dispatchEvent(new Event("change"));
    const panes = panesOf[solution];
    panes.focus({ preventScroll: true });
    move(panes, 0, token).scrollIntoView({ block: "center" });
  }
  for (const row of all('[id^="token-contrast"] tbody tr[data-key]', document)) {
    const cell = row.cells[1];
    const button = document.createElement("button");
    button.type = "button";
    button.className = "token-go";
    button.textContent = cell.textContent;
    button.setAttribute("aria-label", `${cell.textContent}: show in its solution`);
    cell.replaceChildren(button);
    row.dataset.goesTo = row.dataset.key;
    row.addEventListener("click", () => go(row.dataset.key));
  }
}
