// The face of the annotation page: what Python says is shown, what a person does is told. Keys never reach JupyterLab.
function made(tag, parent, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  parent.append(node);
  return node;
}

function render({ model, el }) {
  const { classes, examples } = model.get("words");
  const tell = (message) => model.send(message);
  const root = made("div", el, "annotate");
  root.tabIndex = 0;
  root.dataset.lmSuppressShortcuts = "true";
  const left = made("div", root, "annotate-left");
  const head = made("div", left, "annotate-head");
  const bar = made("progress", left, "annotate-bar");
  const picture = made("img", left, "annotate-map");
  const buttons = made("div", left, "annotate-buttons");
  const button = (parent, name, key, label, message) => {
    const node = made("button", parent, `annotate-${name}`);
    node.title = `key ${key}`;
    made("kbd", node, "", key);
    made("span", node, "", label);
    node.onclick = () => { tell(message); root.focus(); };
  };
  const keys = { u: { do: "undo" }, s: { do: "skip" } };
  for (const [key, label] of Object.entries(classes)) {
    keys[key] = { do: "label", label };
    button(buttons, "class", key, label, keys[key]);
  }
  const more = made("div", left, "annotate-buttons");
  button(more, "undo", "u", "undo", keys.u);
  button(more, "skip", "s", "skip", keys.s);
  made("span", more, "annotate-hint", "Keys work while the frame is blue; click the page if it is not.");
  const said = made("div", left, "annotate-said");
  const card = made("div", root, "annotate-card");
  for (const [label, { text, maps }] of Object.entries(examples)) {
    const row = made("div", card, "annotate-example");
    made("b", row, "", label);
    made("span", row, "", text);
    const strip = made("div", row, "annotate-strip");
    for (const map of maps) made("img", strip, "").src = `data:image/png;base64,${map}`;
  }
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    if (event.target.tagName === "BUTTON" && [" ", "Enter"].includes(event.key)) { event.stopPropagation(); return; }
    event.preventDefault();
    event.stopPropagation();
    const message = keys[event.key.toLowerCase()];
    if (message && !event.repeat) tell(message);
  });
  root.addEventListener("mousedown", () => setTimeout(() => root.focus(), 0));
  const draw = () => {
    const { png, about, done, total, note } = model.get("state");
    head.textContent = `${done} of ${total} labelled${about ? " · " + about : ""}`;
    bar.max = total;
    bar.value = done;
    picture.style.visibility = png ? "visible" : "hidden";
    if (png) picture.src = `data:image/png;base64,${png}`;
    root.dataset.done = done;
    said.textContent = note;
  };
  model.on("change:state", draw);
  draw();
  setTimeout(() => root.focus(), 0);
}

export default { render };
