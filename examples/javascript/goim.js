// A client of goim for browsers, and for Node 22 or later: one file, no dependencies.
//
// It speaks goim's packets over one WebSocket: presents the token, sends heartbeats and notices when nobody answers
// them, takes batches apart, finds the request that a reply belongs to, and comes back with its room and its
// subscriptions when the connection is lost. What it does not know: TLS (that is the URL's matter), what bodies
// mean, and what was pushed while it was away.
//
// Works as a plain <script>, which sets the global `Goim`, so that a page may be opened from a file; as a module
// it is goim.mjs. README.md beside this file shows both.

globalThis.Goim = (() => {
  "use strict";

  /** What a packet is. 1000 and above belong to the application. */
  const Operation = Object.freeze({
    HEARTBEAT: 2, HEARTBEAT_REPLY: 3, SEND: 4, AUTH: 7, AUTH_REPLY: 8, BATCH: 9,
    CHANGE_ROOM: 12, CHANGE_ROOM_REPLY: 13, SUBSCRIBE: 14, SUBSCRIBE_REPLY: 15, UNSUBSCRIBE: 16, UNSUBSCRIBE_REPLY: 17,
  });
  /** The replies that have an operation of their own. All others carry the operation of their request. */
  const REPLIES = new Map([[2, 3], [7, 8], [12, 13], [14, 15], [16, 17]]);

  const HEADER_BYTES = 16;
  /** The server closes the connection over a larger body. What it sends itself may be of any size. */
  const BODY_BYTES_MAX = 4096;
  const SEQUENCE_MAX = 0x7fffffff;

  const encoder = new TextEncoder();
  const decoder = new TextDecoder();

  /** A packet as bytes: 16 of header, big endian, then the body (text or bytes). */
  function encode(operation, sequence, body = "") {
    const bytes = typeof body === "string" ? encoder.encode(body) : body;
    const packet = new Uint8Array(HEADER_BYTES + bytes.length);
    const header = new DataView(packet.buffer);
    header.setInt32(0, packet.length);
    header.setInt16(4, HEADER_BYTES);
    header.setInt16(6, 1); // version 1: the body is as it is, not compressed
    header.setInt32(8, operation);
    header.setInt32(12, sequence);
    packet.set(bytes, HEADER_BYTES);
    return packet;
  }

  /** All packets in `bytes` (a Uint8Array), which they must fill. Bodies are views into it, not copies. */
  function decode(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const packets = [];
    for (let start = 0; start < bytes.length;) {
      const left = bytes.length - start;
      const length = left < HEADER_BYTES ? 0 : view.getInt32(start);
      const headerLength = left < HEADER_BYTES ? 0 : view.getInt16(start + 4);
      if (headerLength < HEADER_BYTES || length < headerLength || length > left) throw new Error("malformed packet");
      packets.push({
        version: view.getInt16(start + 6),
        operation: view.getInt32(start + 8),
        sequence: view.getInt32(start + 12),
        body: bytes.subarray(start + headerLength, start + length),
        get text() { return decoder.decode(this.body); },
      });
      start += length;
    }
    return packets;
  }

  /** How long to wait before the given try (0 is the first), in ms. Without the chance in it, clients that lost
   *  their connection at the same moment would all come back at the same moment. */
  function backoffDelay({ baseDelay, maxDelay, factor, jitter }, attempt) {
    const delay = Math.min(maxDelay, baseDelay * factor ** attempt);
    return delay * (1 + jitter * (2 * Math.random() - 1));
  }

  const DEFAULTS = {
    /** Time between heartbeats. Two that are missing in a row end the session on the server, by its defaults. */
    heartbeatInterval: 240_000,
    /** How long the server may take to answer a heartbeat or any other request. */
    replyTimeout: 15_000,
    /** From the beginning of a try to the auth reply. */
    connectTimeout: 10_000,
    /** The server's own advice is in GET /goim/nodes/weighted, there in seconds; these are its defaults. */
    backoff: { baseDelay: 3_000, maxDelay: 300_000, factor: 1.8, jitter: 0.3 },
  };

  /** One connection that comes back by itself.
   *
   *  Options: `url`, `token` (the object that is presented: mid, key, room_id, platform, accepts), and what DEFAULTS
   *  has, times in ms. Nothing happens before `connect()`.
   *
   *  Events, with what they tell in `event.detail`:
   *  - `open`       authenticated: `{ attempt }`, tries that it took, from 0
   *  - `message`    a push: `{ operation, version, sequence, body, text }`
   *  - `heartbeat`  answered: `{ online, roundTrip }`, sessions in the room, and ms
   *  - `close`      lost, or never reached: `{ reason, retryIn }`, ms until the next try, null after `close()`
   *  - `packet`     every packet on the wire, for onlookers: `{ sent, packet }`
   */
  class Client extends EventTarget {
    #options;
    #room;
    #accepts;
    #socket = null;
    #presented = false; // the token was sent; the server takes what follows it in order
    #ready = false;
    #attempt = 0;
    #sequence = 0;
    #waiting = new Map(); // sequence -> { operation of the reply, resolve, reject, timer }
    #timer; // the next try, or the end of this one, or the next heartbeat: there is only ever one of them

    constructor(options) {
      super();
      this.#options = { ...DEFAULTS, ...options, backoff: { ...DEFAULTS.backoff, ...options.backoff } };
      this.#room = options.token.room_id ?? "";
      this.#accepts = new Set(options.token.accepts);
    }

    /** True between `open` and `close`. */
    get ready() { return this.#ready; }
    /** The room that this client is in, or will be in when it is back; empty for none. */
    get room() { return this.#room; }
    /** The operations that this client wants of pushes to its key, its member and all. A room's come regardless. */
    get accepts() { return [...this.#accepts]; }

    /** Connects, and from now on comes back after every loss. */
    connect() {
      if (this.#socket) return;
      clearTimeout(this.#timer);
      const socket = new WebSocket(this.#options.url);
      this.#socket = socket;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this.#authenticate();
      socket.onmessage = (event) => this.#receive(event.data);
      socket.onclose = () => this.#lost("closed by the server, or not reached");
      this.#timer = setTimeout(() => this.#lost("no answer in time"), this.#options.connectTimeout);
    }

    /** Ends the connection and stays away. */
    close() {
      this.#lost("closed by this client", false);
    }

    /** Moves to another room; a session is in one at most. Remembered over a loss; no connection is needed. */
    async join(room) {
      this.#room = room;
      if (this.#presented) await this.#request(Operation.CHANGE_ROOM, room);
    }

    async leave() {
      await this.join("");
    }

    /** Asks for more operations; `unsubscribe` for fewer. Remembered over a loss. */
    async subscribe(...operations) {
      for (const operation of operations) this.#accepts.add(operation);
      if (this.#presented) await this.#request(Operation.SUBSCRIBE, operations.join(","));
    }

    async unsubscribe(...operations) {
      for (const operation of operations) this.#accepts.delete(operation);
      if (this.#presented) await this.#request(Operation.UNSUBSCRIBE, operations.join(","));
    }

    /** Sends a packet up to the backend: text or bytes, 4096 bytes at most. Resolves to the reply, of which the body
     *  is what the backend answered. Rejects when the connection is not there, or lost before the reply: the
     *  packet may then have arrived or not. */
    send(operation, body) {
      return this.#request(operation, body);
    }

    async #authenticate() {
      const socket = this.#socket;
      const token = { ...this.#options.token, room_id: this.#room, accepts: this.accepts };
      this.#presented = true;
      try {
        await this.#request(Operation.AUTH, JSON.stringify(token));
      } catch (error) {
        if (socket === this.#socket) this.#lost(error.message);
        return;
      }
      this.#ready = true;
      this.#emit("open", { attempt: this.#attempt });
      this.#attempt = 0;
      clearTimeout(this.#timer);
      this.#heartbeat();
    }

    async #heartbeat() {
      const socket = this.#socket;
      const since = performance.now();
      try {
        const { body } = await this.#request(Operation.HEARTBEAT);
        const online = new DataView(body.buffer, body.byteOffset, body.length).getInt32(0);
        this.#emit("heartbeat", { online, roundTrip: performance.now() - since });
      } catch {
        if (socket === this.#socket) this.#lost("heartbeat not answered");
        return;
      }
      // A listener may have closed the connection meanwhile.
      if (socket === this.#socket) this.#timer = setTimeout(() => this.#heartbeat(), this.#options.heartbeatInterval);
    }

    #request(operation, body = "") {
      return new Promise((resolve, reject) => {
        if (!this.#presented) return reject(new Error("not connected"));
        this.#sequence = this.#sequence === SEQUENCE_MAX ? 1 : this.#sequence + 1;
        const sequence = this.#sequence;
        const packet = encode(operation, sequence, body);
        if (packet.length > HEADER_BYTES + BODY_BYTES_MAX) return reject(new RangeError("body above 4096 bytes"));
        const timer = setTimeout(() => {
          this.#waiting.delete(sequence);
          reject(new Error("no reply in time"));
        }, this.#options.replyTimeout);
        this.#waiting.set(sequence, { operation: REPLIES.get(operation) ?? operation, resolve, reject, timer });
        this.#socket.send(packet);
        this.#emit("packet", { sent: true, packet: decode(packet)[0] });
      });
    }

    #receive(data) {
      try {
        for (const packet of decode(new Uint8Array(data))) {
          this.#emit("packet", { sent: false, packet });
          // Over WebSocket every push comes inside a batch, even when it is alone there.
          if (packet.operation === Operation.BATCH) decode(packet.body).forEach((push) => this.#emit("message", push));
          else if (!this.#answers(packet)) this.#emit("message", packet);
        }
      } catch (error) {
        // Nothing after a malformed packet can be trusted.
        this.#lost(error.message);
      }
    }

    /** Hands a reply to the request that waits for it. */
    #answers(packet) {
      const request = this.#waiting.get(packet.sequence);
      if (request?.operation !== packet.operation) return false;
      this.#waiting.delete(packet.sequence);
      clearTimeout(request.timer);
      request.resolve(packet);
      return true;
    }

    #lost(reason, comeBack = true) {
      clearTimeout(this.#timer);
      const socket = this.#socket;
      this.#socket = null;
      this.#presented = this.#ready = false;
      if (socket) {
        // On a dead network the browser may take long to say that the socket is closed, so it is not waited for.
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close();
      }
      for (const { reject, timer } of this.#waiting.values()) {
        clearTimeout(timer);
        reject(new Error(reason));
      }
      this.#waiting.clear();
      const retryIn = comeBack ? backoffDelay(this.#options.backoff, this.#attempt++) : null;
      if (comeBack) this.#timer = setTimeout(() => this.connect(), retryIn);
      this.#emit("close", { reason, retryIn });
    }

    #emit(type, detail) {
      this.dispatchEvent(new CustomEvent(type, { detail }));
    }
  }

  return Object.freeze({ Client, Operation, encode, decode, backoffDelay });
})();
