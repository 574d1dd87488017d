// Heat over the image, as `arlow explain` draws it (arlow_vl/evaluation/heat_maps.py): the view turns grey, and over it
// lies a colour that only grows brighter with the attention, so that it can be read on dark places and on light ones.
// The colours and their share come with the numbers.

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
}

/** Red, green and blue for each of 256 steps. */
function rampOf(colours) {
  const ramp = new Uint8ClampedArray(256 * 3);
  for (let step = 0; step < 256; step++) {
    const position = (step / 255) * (colours.length - 1);
    const below = Math.min(Math.floor(position), colours.length - 2);
    for (let part = 0; part < 3; part++) {
      const [from, to] = [colours[below][part], colours[below + 1][part]];
      ramp[step * 3 + part] = from + (to - from) * (position - below);
    }
  }
  return ramp;
}

/** The maps of one answer: a canvas for each view of each image. */
export class Maps {
  static async of(reply) {
    const maps = new Maps();
    maps.scale = reply.scale;
    maps.ramp = rampOf(reply.scale.colours);
    maps.views = await Promise.all(reply.views.map(async (view) => {
      const image = new Image();
      image.src = view.url;
      await image.decode();
      const [canvas, context] = canvasOf(image.naturalWidth, image.naturalHeight);
      context.drawImage(image, 0, 0);
      return { ...view, canvas, context, pixels: context.getImageData(0, 0, canvas.width, canvas.height) };
    }));
    return maps;
  }

  /** Draws one word's heat, a list of numbers for each view, in times the even share. */
  draw(heat) {
    this.views.forEach((view, number) => this.#drawView(view, heat[number]));
  }

  #drawView({ canvas: { width, height }, context, pixels, rows, columns }, heat) {
    // The grid as brightness on a small canvas, which the browser then smooths to the size of the view.
    const [small, grid] = canvasOf(columns, rows);
    const places = grid.createImageData(columns, rows);
    heat.forEach((times, place) => {
      const bright = 255 * Math.sqrt(Math.min(times / this.scale.top, 1));
      places.data.set([bright, bright, bright, 255], place * 4);
    });
    grid.putImageData(places, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(small, 0, 0, width, height);
    const drawn = context.getImageData(0, 0, width, height);
    const share = this.scale.colour_share;
    for (let at = 0; at < drawn.data.length; at += 4) {
      const grey = 0.299 * pixels.data[at] + 0.587 * pixels.data[at + 1] + 0.114 * pixels.data[at + 2];
      const step = drawn.data[at] * 3;
      for (let part = 0; part < 3; part++) {
        drawn.data[at + part] = share * this.ramp[step + part] + (1 - share) * grey;
      }
      drawn.data[at + 3] = 255;
    }
    context.putImageData(drawn, 0, 0);
  }

  /** A bar of the colours, which follow the square root of the attention. */
  bar(width, height) {
    const [canvas, context] = canvasOf(width, height);
    for (let across = 0; across < width; across++) {
      const step = Math.round((across / (width - 1)) * 255) * 3;
      context.fillStyle = `rgb(${this.ramp.slice(step, step + 3).join(" ")})`;
      context.fillRect(across, 0, 1, height);
    }
    return canvas;
  }
}
