"""A picture that answers to the mouse and to the arrow keys."""

import anywidget
import traitlets

SCRIPT = """
function render({ model, el }) {
  const image = document.createElement("img");
  image.tabIndex = 0;  // so that the keyboard reaches it
  image.style.cssText = "max-width: 100%; cursor: crosshair; touch-action: none;";
  image.draggable = false;
  let address = null;
  const show = () => {
    const bytes = model.get("png");
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    image.src = address;
  };
  const describe = () => { image.alt = model.get("alt"); };
  const send = (x, y) => {
    const inside = (v) => Math.min(1, Math.max(0, v));
    model.set("point", [inside(x), inside(y)]);
    model.save_changes();
  };
  const follow = (event) => {
    const box = image.getBoundingClientRect();
    send((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  image.addEventListener("pointerdown", (event) => {
    image.setPointerCapture(event.pointerId);
    follow(event);
  });
  image.addEventListener("pointermove", (event) => {
    if (event.buttons && model.get("drags")) follow(event);
  });
  image.addEventListener("keydown", (event) => {
    const steps = { Left: [-1, 0], Right: [1, 0], Up: [0, -1], Down: [0, 1] };
    const step = steps[event.key.replace("Arrow", "")];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();  // JupyterLab would go to another cell
    const [x, y] = model.get("point").length ? model.get("point") : [0.5, 0.5];
    send(x + step[0] / 20, y + step[1] / 20);
  });
  model.on("change:png", show);
  model.on("change:alt", describe);
  show();
  describe();
  el.appendChild(image);
  return () => URL.revokeObjectURL(address);
}
export default { render };
"""


class PointedImage(anywidget.AnyWidget):
    """A PNG on which one points: `point` is where, as shares of width and height, or ().

    A click or a tap sets it, so do the arrow keys (a twentieth of the side each), and where `drags`
    is set also the pointer while its button is held. `alt` says what is in the picture.
    """

    _esm = SCRIPT
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    drags = traitlets.Bool(False).tag(sync=True)
    point = traitlets.List(traitlets.Float()).tag(sync=True)
