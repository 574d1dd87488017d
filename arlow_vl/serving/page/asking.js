// The server's API, as the page uses it: settings, answers as they are written, heat maps.

let key = ""; // in memory alone
export const useKey = (given) => { key = given; };

/** An error that the server or the connection reports, as a sentence for people. */
export class Refused extends Error {
  constructor(status, { message, param = null }) {
    super(message);
    this.status = status;
    this.param = param; // the field of the request that the sentence is about
  }
}

const GONE = "the server does not answer; see whether it still runs, then try again";
const BROKEN = "the answer broke off, as the server ended it or the network did";

async function request(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), signal };
    response = await fetch(path, { headers, ...sent });
  } catch (error) {
    throw signal?.aborted ? error : new Refused(0, { message: GONE });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refused(response.status, told.error ?? { message: `the server answered with status ${response.status}` });
}

/** Awaits a part of a response. Throws Refused where the connection broke. */
async function received(part, signal) {
  try {
    return await part;
  } catch (error) {
    throw signal?.aborted ? error : new Refused(0, { message: BROKEN });
  }
}

export const settings = async () => received((await request("settings")).json());

export const heatOf = async (body, signal) => received((await request("v1/heat", body, signal)).json(), signal);

/** The chunks of an answer, one a token or a few. Leaving the loop, or the signal, ends the writing on the server. */
export async function* answer(body, signal) {
  const response = await request("v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { value, done } = await received(reader.read(), signal);
    if (done) throw new Refused(0, { message: BROKEN });
    const events = (unread + value).split("\n\n");
    unread = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(response.status, chunk.error);
      yield chunk;
    }
  }
}
