// Requests to the server.

/** The token that the user has entered; `null` without. It is forgotten with the tab. */
const TOKEN_KEY = "token";
export const token = {
  get: () => sessionStorage.getItem(TOKEN_KEY),
  set: (text) => sessionStorage.setItem(TOKEN_KEY, text),
  clear: () => sessionStorage.removeItem(TOKEN_KEY),
};

/** A failure that can be shown to the user as it is. */
export class Problem extends Error {}

/** The JSON of a response as `body`, and its header `Server-Timing`; `null` if the server asks for another token. */
export async function request(path, options = {}) {
  const sent = token.get();
  const headers = sent === null ? {} : { Authorization: `Bearer ${sent}` };
  let response, text, body;
  try {
    response = await fetch(path, { ...options, headers });
    text = await response.text();
  } catch {
    throw new Problem("The server does not respond. Check that it is running and that the network works");
  }
  // Another token may have been entered meanwhile.
  if (response.status === 401) return token.get() === sent ? null : request(path, options);
  try {
    body = JSON.parse(text);
  } catch {
    throw new Problem(`Status ${response.status}, and the response is not JSON: ${text.slice(0, 200)}`);
  }
  if (!response.ok) throw new Problem(body.error ?? `Status ${response.status}`);
  return { body, timing: response.headers.get("Server-Timing") };
}

/** The stages of a `Server-Timing` header as `[name, milliseconds]`; the rest of the round trip is "transfer". */
export function stages(header, total) {
  const times = (header ?? "").split(",").flatMap((metric) => {
    const [name, ...parameters] = metric.split(";").map((part) => part.trim());
    const value = (key) => parameters.find((part) => part.startsWith(`${key}=`))?.slice(key.length + 1);
    const duration = Number(value("dur"));
    return Number.isFinite(duration) ? [[value("desc")?.replaceAll('"', "") ?? name, duration]] : [];
  });
  const rest = total - times.reduce((sum, [, duration]) => sum + duration, 0);
  return { stages: times.length ? [...times, ["transfer", Math.max(rest, 0)]] : [], total };
}
