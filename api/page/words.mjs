// Times and scores in words. A score is no probability, and no word here may say so.

const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;
const DAY = { year: "numeric", month: "short", day: "numeric" };
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const full = new Intl.DateTimeFormat(undefined, { ...DAY, ...CLOCK });
const exact = new Intl.DateTimeFormat(undefined, { ...DAY, ...CLOCK, fractionalSecondDigits: 2 });
const clock = new Intl.DateTimeFormat(undefined, CLOCK);
const exactClock = new Intl.DateTimeFormat(undefined, { ...CLOCK, fractionalSecondDigits: 2 });

/** Day and time of the viewer's zone; parts of a second only where there are any. */
export function timeWords(when) {
  const date = new Date(when);
  return (date.getMilliseconds() >= 5 ? exact : full).format(date);
}

/** The time of day. */
export function clockWords(when) {
  const date = new Date(when);
  return (date.getMilliseconds() >= 5 ? exactClock : clock).format(date);
}

/** The viewer's zone, as "Europe/Berlin (GMT+2)". */
export function zoneWords(when = Date.now()) {
  const parts = new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(new Date(when));
  const offset = parts.find((part) => part.type === "timeZoneName")?.value ?? "";
  return ZONE && ZONE !== offset ? `${ZONE} (${offset})` : offset;
}

/** The same instant in UTC, for titles. */
export function utcWords(when) {
  return `${new Date(when).toISOString().replace("T", " ").replace("Z", "")} UTC`;
}

/** What a field for day and time takes. */
export function fieldTime(when) {
  const date = new Date(when);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

/** A length of time, coarse. */
export function spanWords(ms) {
  const s = Math.abs(ms) / 1000;
  if (s < 1) return "less than a second";
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

/** 1 hit, 2 hits. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString()} ${number === 1 ? one : many}`;
}

/** What a hit's likeness means: {tone, words, meaning}. */
export function chanceWords(hit) {
  if (hit.on_trail) {
    return {
      tone: "followed",
      words: "Followed",
      meaning:
        "Followed from frame to frame from your region: the same thing, unless it was mixed up on" +
        " the way. Watch the frames between.",
    };
  }
  const chance = hit.false_matches;
  if (chance === null) {
    return {
      tone: "unstated",
      words: "Chance not stated",
      meaning: "How often chance brings a frame as alike as this is not known for this search.",
    };
  }
  if (chance < 0.1) {
    return {
      tone: "lead",
      words: "Stands out: a lead",
      meaning: "Stands out from everything else that was searched. A lead, to be looked at.",
    };
  }
  if (chance <= 1) {
    return {
      tone: "maybe",
      words: "May be chance",
      meaning: `Stands out, but chance alone brings about ${number(chance)} frames as alike as this.`,
    };
  }
  return {
    tone: "weak",
    words: "No more than chance",
    meaning: `Chance alone brings about ${number(chance)} frames as alike as this.`,
  };
}

/** Whether anything in the answer is more than chance; null where nothing is stated. */
export function convinces(hits) {
  if (hits.some((hit) => hit.on_trail || (hit.false_matches !== null && hit.false_matches <= 1))) {
    return true;
  }
  return hits.some((hit) => hit.false_matches === null) ? null : false;
}

/** A number short enough to read. */
export function number(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString();
  if (Math.abs(value) < 0.001) return "under 0.001";
  return value.toLocaleString(undefined, { maximumSignificantDigits: 3 });
}

/** A share as percent. */
export function percent(share) {
  return `${Math.round(share * 100)} %`;
}
