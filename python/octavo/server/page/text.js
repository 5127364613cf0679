// Texts of the server, read: events of a stream, and metrics.

/** Takes a stream in any portions; gives the data of the events that are complete. */
export class EventReader {
  #held = "";

  feed(text) {
    const events = (this.#held + text).split("\n\n");
    this.#held = events.pop();
    return events.flatMap((event) => event.split("\n")).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
  }
}

/** Prometheus' text as name to value; series of one name are summed. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const parts = /^([A-Za-z_:][\w:]*)(\{.*\})? (\S+)/.exec(line);
    if (parts) found.set(parts[1], (found.get(parts[1]) ?? 0) + Number(parts[3]));
  }
  return found;
}
