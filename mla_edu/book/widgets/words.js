// Numbers in words, each function named as in mla_edu/words.py, which writes the same; and what only a page needs.

const count = (number) => number.toLocaleString("en-US");
const digits = (number) => (number >= 99.95 ? count(Math.round(number)) : number.toPrecision(3));
const percent = (share) => `${share >= 0.0995 ? count(Math.round(100 * share)) : (100 * share).toPrecision(2)}%`;
const ratio = (number) => `${number >= 9.95 ? number.toFixed(0) : number.toPrecision(2)}×`;
const duration = (time) => (time >= 999.5 ? `${digits(time / 1e3)} ms` : `${digits(time)} µs`);

function size(num_bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
  let number = Number(num_bytes);
  while (number >= 999.5 && units.length > 1) {
    number /= 1000;
    units.shift();
  }
  return units[0] === "B" ? `${number.toFixed(0)} B` : `${digits(number)} ${units[0]}`;
}

// 4.58 billion; up to 999,999 in full
const LARGE = new Intl.NumberFormat("en-US", {
  notation: "compact",
  compactDisplay: "long",
  minimumSignificantDigits: 3,
  maximumSignificantDigits: 3,
});
const large = (number) => (number < 1_000_000n ? count(number) : LARGE.format(number));

// With so many decimal places, a true minus sign, and no minus before zero
function fixed(number, places) {
  if (Number.isNaN(number)) return "–";
  const text = Number.isFinite(number) ? Math.abs(number).toFixed(places) : "∞";
  return number < 0 && Number(text) !== 0 ? `−${text}` : text;
}
