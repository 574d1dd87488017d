// Images to try, drawn here: plain shapes, about which a model trained on `make demo`'s data can be asked.

const SIDE = 224;

function disc(context, x, y, radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function polygon(context, colour, ...corners) {
  context.fillStyle = colour;
  context.beginPath();
  corners.forEach(([x, y]) => context.lineTo(x, y));
  context.fill();
}

const DRAWINGS = [
  ["red circle", "what color is the shape?", "#d7e3ef", (context) => disc(context, 96, 120, 58, "#d42a2a")],
  ["blue triangle", "what shape is in the image?", "#f3ead8",
    (context) => polygon(context, "#2346c8", [112, 36], [190, 176], [34, 176])],
  ["green rectangle", "is there a circle?", "#e9dff0",
    (context) => polygon(context, "#1d8a3c", [48, 60], [184, 60], [184, 150], [48, 150])],
  ["yellow circle on black", "what color is the shape?", "#17181c", (context) => disc(context, 138, 92, 44, "#f2c61f")],
];

/** Each with a name, a question that fits, and its file. */
export async function examples() {
  return Promise.all(DRAWINGS.map(async ([name, question, ground, paint]) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    const context = canvas.getContext("2d");
    context.fillStyle = ground;
    context.fillRect(0, 0, SIDE, SIDE);
    paint(context);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    return { name, question, file: new File([blob], `${name}.png`, { type: "image/png" }) };
  }));
}
