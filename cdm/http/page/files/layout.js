// Where everything on the map is: as large as the window allows, so that three nodes and three hundred are both one look.

const ROWS = { name: "rows", least: 168, most: 280, height: 24, gap: 3, head: 40, between: 20 };
const DENSE = [16, 12, 9, 7].map((size) => ({
  name: `cells-${size}`, size, gap: size >= 12 ? 3 : 1, head: size >= 12 ? 30 : 16,
}));
const LEVELS = [ROWS, ...DENSE];
const HEADING = 30;
const LEAST_ZONE = 150; // what its name needs
const APART = 10; // between zones that stand beside each other, besides what is between columns
const EDGE = 3; // room for the frame around what is chosen
const SCROLL = 1.6; // heights of the window: this much scrolling is better than smaller cells
const LEAST_WIDE = 5; // px that a cell is wide at least
const MOST_WIDE = 12; // cells side by side in a column

/**
 * Lays zones out within a width.
 *
 * @param zones - pairs of a zone's name and its nodes, in order
 * @param before - the name of the level that is shown now; another one has to be clearly better
 */
export function laidOut(zones, width, height, before) {
  let made = null;
  for (const level of LEVELS) {
    made = onLevel(level, zones, width);
    const room = height * (level.name === "rows" ? 1.1 : SCROLL) * (level.name === before ? 1.12 : 1);
    if (made.height <= room) break;
  }
  return made;
}

function onLevel(level, zones, width) {
  width -= 2 * EDGE;
  const largest = Math.max(1, ...zones.map(([, nodes]) => nodes.length));
  const form = level === ROWS ? rowsForm(width, largest, zones) : denseForm(level, width, largest);
  const columns = [], headings = [], bands = [];
  const named = zones.length > 1 || zones[0]?.[0];
  const between = form.between ?? 12;
  // Small zones stand beside each other, as on a shelf; one that needs more than a row has the width for itself.
  let left = EDGE, top = 4, bottom = 4;
  for (const [zone, nodes] of zones) {
    const across = Math.max(Math.min(nodes.length, form.perRow) * form.slot, named ? LEAST_ZONE : 0);
    if (left > EDGE && (left + across - form.slot + form.column > width + EDGE || nodes.length > form.perRow)) {
      left = EDGE;
      top = bottom;
    }
    let y = top;
    if (named) {
      headings.push({ zone, nodes, x: left, y, width: nodes.length > form.perRow ? width : across - form.slot + form.column });
      y += HEADING;
    }
    for (let from = 0; from < nodes.length; from += form.perRow) {
      const some = nodes.slice(from, from + form.perRow);
      const deepest = Math.max(1, ...some.map((node) => Math.ceil(node.sorted.length / form.wide)));
      const band = { left, right: left + some.length * form.slot, top: y, bottom: y + level.head + deepest * (form.h + level.gap), columns: [] };
      some.forEach((node, place) => {
        const column = { node, x: left + place * form.slot, y, number: columns.length, band };
        columns.push(column);
        band.columns.push(column);
      });
      bands.push(band);
      y = band.bottom + between;
    }
    bottom = Math.max(bottom, y + 6);
    left += nodes.length > form.perRow ? width : across + APART;
  }
  return { ...form, level: level.name, head: level.head, gap: level.gap, columns, headings, bands, height: bottom, rows: level === ROWS };
}

function rowsForm(width, largest, zones) {
  const { least, most, between, height } = ROWS;
  const all = zones.reduce((sum, [, nodes]) => sum + nodes.length, 0);
  const apart = (zones.length - 1) * APART;
  const beside = all * (least + between) - between + apart <= width; // all zones, on one shelf
  const perRow = Math.max(1, Math.min(beside ? all : largest, Math.floor((width + between) / (least + between))));
  const w = Math.min(most, Math.floor((width - (beside ? apart : 0) + between) / perRow) - between);
  return { perRow, w, h: height, wide: 1, column: w, slot: w + between, between };
}

function denseForm({ size, gap }, width, largest) {
  const between = size >= 12 ? 12 : 2;
  const share = Math.floor((width + between) / largest) - between;
  const wide = Math.max(1, Math.min(MOST_WIDE, Math.floor((share + gap) / (size + gap))));
  // One cell more than its neighbour needs a gap that is seen.
  const apart = wide > 1 ? Math.max(between, 6) : between;
  // A little narrower, or wider, where all of the largest zone then is one row.
  const w = wide > 1 || share < LEAST_WIDE ? size : Math.min(share, Math.round(size * 1.5));
  const column = wide * (w + gap) - gap;
  const slot = column + apart;
  const most = Math.max(1, Math.floor((width + apart) / slot));
  const perRow = Math.ceil(largest / Math.ceil(largest / most)); // rows of the same length
  return { perRow, w, h: size, wide, column, slot };
}

/** The place of a column's cell. */
export function place(laid, column, index) {
  return [
    column.x + (index % laid.wide) * (laid.w + laid.gap),
    column.y + laid.head + Math.floor(index / laid.wide) * (laid.h + laid.gap),
  ];
}

/** What is at a point: the column, and the number of its cell, or -1 for its head; null where nothing is. */
export function hit(laid, x, y) {
  const band = laid.bands.find((each) => y >= each.top && y < each.bottom && x >= each.left && x < each.right);
  const column = band?.columns[Math.floor((x - band.left) / laid.slot)];
  if (!column || x > column.x + laid.column + 1) return null;
  const down = y - column.y - laid.head;
  if (down < 0) return { column, index: -1 };
  const across = Math.min(laid.wide - 1, Math.floor((x - column.x) / (laid.w + laid.gap)));
  const index = Math.floor(down / (laid.h + laid.gap)) * laid.wide + across;
  return index < column.node.sorted.length ? { column, index } : null;
}

/** Where an arrow key leads to from a column's cell. */
export function step(laid, column, index, key) {
  const { columns, wide } = laid;
  const last = (one) => one.node.sorted.length - 1;
  const beside = (by) => {
    const other = columns[column.number + by];
    if (!other) return { column, index };
    const row = index < 0 ? -1 : Math.floor(index / wide) * wide + (by > 0 ? 0 : wide - 1);
    return { column: other, index: Math.min(row, last(other)) };
  };
  switch (key) {
    case "ArrowRight":
      return index >= 0 && index % wide < wide - 1 && index < last(column) ? { column, index: index + 1 } : beside(1);
    case "ArrowLeft":
      return index > 0 && index % wide > 0 ? { column, index: index - 1 } : beside(-1);
    case "ArrowDown":
      if (index < 0) return last(column) < 0 ? below(laid, column) : { column, index: 0 };
      return index + wide <= last(column) ? { column, index: index + wide } : below(laid, column);
    case "ArrowUp":
      if (index < 0) return above(laid, column);
      return { column, index: index - wide >= 0 ? index - wide : -1 };
    case "Home": return { column: columns[0], index: -1 };
    case "End": return { column: columns.at(-1), index: -1 };
  }
  return { column, index };
}

function below({ bands }, column) {
  const other = nearest(bands.filter((band) => band.top >= column.band.bottom), column, (band) => band.top);
  return other ? { column: other, index: -1 } : { column, index: column.node.sorted.length - 1 };
}

function above({ bands }, column) {
  const other = nearest(bands.filter((band) => band.bottom <= column.band.top), column, (band) => -band.bottom);
  return other ? { column: other, index: other.node.sorted.length - 1 } : { column, index: -1 };
}

/** Of the columns of the first of these bands, in this order, the one that is straight above or below. */
function nearest(bands, column, order) {
  const first = Math.min(...bands.map(order));
  const columns = bands.filter((band) => order(band) === first).flatMap((band) => band.columns);
  return columns.sort((a, b) => Math.abs(a.x - column.x) - Math.abs(b.x - column.x))[0];
}
