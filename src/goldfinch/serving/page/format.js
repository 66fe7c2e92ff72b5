// Numbers and lines as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

export const tokens = (number) => `${count(number)} ${number === 1 ? "token" : "tokens"}`;

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Bytes with three digits: 80123456 is "80.1 MB". */
export function bytes(number) {
  let unit = 0;
  while (number >= 999.5 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${threeDigits(number)} ${UNITS[unit]}`;
}

/** Three digits, without an exponent: 1234.5 is "1,235", 1.234 is "1.23". */
export function threeDigits(number) {
  return number >= 100 ? count(Math.round(number)) : String(Number(number.toPrecision(3)));
}

export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  return `${threeDigits(seconds / 3600)} h`;
}

/** Lines that were broken to fit the width of a page flow again; short ones, as of verse, stay. */
export const flow = (text) => text.replace(/(?<=\S.{40,})\r?\n(?=\S)/g, " ");
