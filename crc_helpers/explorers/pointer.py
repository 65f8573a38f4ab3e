"""A picture that says what is in it, and answers to the mouse and to the arrow keys."""

import anywidget
import traitlets

SCRIPT = """
function render({ model, el }) {
  const image = document.createElement("img");
  image.className = "picture";
  image.style.cssText = "max-width: 100%; height: auto;";
  image.draggable = false;
  let address = null;
  const show = () => {
    const bytes = model.get("value");
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    image.src = address;
    if (!bytes.byteLength) return;
    // The sides stand in a PNG's head: its room is kept, and nothing below jumps.
    [image.width, image.height] = [bytes.getUint32(16), bytes.getUint32(20)];
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
  if (model.get("answers")) {
    image.tabIndex = 0;  // so that the keyboard reaches it
    image.style.cssText += "cursor: crosshair; touch-action: none;";
    image.addEventListener("pointerdown", (event) => {
      image.setPointerCapture(event.pointerId);
      follow(event);
    });
    image.addEventListener("pointermove", (event) => {
      if (event.buttons && model.get("answers") == "drag") follow(event);
    });
    image.addEventListener("keydown", (event) => {
      const ways = { Left: [-1, 0], Right: [1, 0], Up: [0, -1], Down: [0, 1] };
      const way = ways[event.key.replace("Arrow", "")];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();  // JupyterLab would go to another cell
      const [x, y] = model.get("point").length ? model.get("point") : [0.5, 0.5];
      const [across, down] = model.get("step");
      send(x + way[0] * across, y + way[1] * down);
    });
  }
  model.on("change:value", show);
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

    A click or a tap sets it, and so do the arrow keys, by a `step` (across, down) each; where
    `answers` is "drag" also the pointer while its button is held; where it is "", nothing does.
    `alt` says what is in the picture.
    """

    _esm = SCRIPT
    value = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    answers = traitlets.Enum(["", "click", "drag"], "click").tag(sync=True)
    step = traitlets.List(traitlets.Float(), [0.05, 0.05]).tag(sync=True)
    point = traitlets.List(traitlets.Float()).tag(sync=True)
