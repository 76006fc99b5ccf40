// A client of goim for browsers, and for Node 22 or later: one file, no dependencies.
//
// It exchanges goim's packets over one WebSocket: it presents the token, sends heartbeats and
// detects lost ones, splits batches, matches replies to requests, and reconnects with its room and
// its subscriptions. It does not interpret bodies, and pushes during a disconnection are lost. TLS
// is a property of the URL.
//
// Use it as a plain <script>, which sets the global `Goim` and works in a page opened as a file, or
// as the module goim.mjs. README.md in this folder shows both.

globalThis.Goim = (() => {
  "use strict";

  /** The operations of the protocol. 1000 and above belong to the application. */
  const Operation = Object.freeze({
    HEARTBEAT: 2, HEARTBEAT_REPLY: 3, SEND: 4, AUTH: 7, AUTH_REPLY: 8, BATCH: 9,
    CHANGE_ROOM: 12, CHANGE_ROOM_REPLY: 13, SUBSCRIBE: 14, SUBSCRIBE_REPLY: 15, UNSUBSCRIBE: 16, UNSUBSCRIBE_REPLY: 17,
  });
  /** Replies with a different operation. All others have the operation of their request. */
  const REPLIES = new Map([[2, 3], [7, 8], [12, 13], [14, 15], [16, 17]]);

  const HEADER_BYTES = 16;
  /** The largest body of a request: the server closes the connection on a larger one. Bodies from the
   *  server have no limit. */
  const BODY_BYTES_MAX = 4096;
  const SEQUENCE_MAX = 0x7fffffff;

  const encoder = new TextEncoder();
  const decoder = new TextDecoder();

  /** Encodes a packet: 16 bytes of header, big endian, then the body (text or bytes). */
  function encode(operation, sequence, body = "") {
    const bytes = typeof body === "string" ? encoder.encode(body) : body;
    const packet = new Uint8Array(HEADER_BYTES + bytes.length);
    const header = new DataView(packet.buffer);
    header.setInt32(0, packet.length);
    header.setInt16(4, HEADER_BYTES);
    header.setInt16(6, 1); // version 1: the body is not compressed
    header.setInt32(8, operation);
    header.setInt32(12, sequence);
    packet.set(bytes, HEADER_BYTES);
    return packet;
  }

  /** Decodes all packets in `bytes` (a Uint8Array) and throws if bytes remain. Bodies are views into it. */
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

  /** Returns the delay before an attempt, counted from 0, in ms. The jitter keeps clients that were
   *  disconnected together from reconnecting together. */
  function backoffDelay({ baseDelay, maxDelay, factor, jitter }, attempt) {
    const delay = Math.min(maxDelay, baseDelay * factor ** attempt);
    return delay * (1 + jitter * (2 * Math.random() - 1));
  }

  const DEFAULTS = {
    /** The time between heartbeats. By default the server ends a session after two missed ones. */
    heartbeatInterval: 240_000,
    /** The time for the reply to a heartbeat or another request. */
    replyTimeout: 15_000,
    /** The time from the start of an attempt to the auth reply. */
    connectTimeout: 10_000,
    /** The defaults of the server. GET /goim/nodes/weighted returns its actual values, in seconds. */
    backoff: { baseDelay: 3_000, maxDelay: 300_000, factor: 1.8, jitter: 0.3 },
  };

  /** One connection that is re-established when it is lost.
   *
   *  Options: `url`, `token` (an object with mid, key, room_id, platform, accepts), and those in
   *  DEFAULTS, times in ms. Nothing happens before `connect()`.
   *
   *  Events, with their data in `event.detail`:
   *  - `open`       authenticated: `{ attempt }`, the number of failed attempts before
   *  - `message`    a push: `{ operation, version, sequence, body, text }`
   *  - `heartbeat`  a heartbeat reply: `{ online, roundTrip }`, sessions in the room, and ms
   *  - `close`      lost or not established: `{ reason, retryIn }`, ms until the next attempt, null after
   *                 `close()`
   *  - `packet`     every packet on the wire: `{ sent, packet }`
   */
  class Client extends EventTarget {
    #options;
    #room;
    #accepts;
    #socket = null;
    #presented = false; // the token was sent; the server processes later packets in order
    #ready = false;
    #attempt = 0;
    #sequence = 0;
    #pending = new Map(); // sequence -> { operation of the reply, resolve, reject, timer }
    #timer; // the next attempt, the timeout of this one, or the next heartbeat: never two of them

    constructor(options) {
      super();
      this.#options = { ...DEFAULTS, ...options, backoff: { ...DEFAULTS.backoff, ...options.backoff } };
      this.#room = options.token.room_id ?? "";
      this.#accepts = new Set(options.token.accepts);
    }

    /** True between `open` and `close`. */
    get ready() { return this.#ready; }
    /** The room of this client, or of its next connection; empty for none. */
    get room() { return this.#room; }
    /** The operations that this client subscribed to, for pushes to keys, members and all. Pushes to the
     *  room arrive with every operation. */
    get accepts() { return [...this.#accepts]; }

    /** Connects, and reconnects whenever the connection is lost. */
    connect() {
      if (this.#socket) return;
      clearTimeout(this.#timer);
      const socket = new WebSocket(this.#options.url);
      this.#socket = socket;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this.#authenticate();
      socket.onmessage = (event) => this.#receive(event.data);
      socket.onclose = () => this.#lost("closed by the server, or not reachable");
      this.#timer = setTimeout(() => this.#lost("no reply in time"), this.#options.connectTimeout);
    }

    /** Closes the connection for good. */
    close() {
      this.#lost("closed by this client", false);
    }

    /** Moves to another room; a session is in at most one. The room survives a lost connection and may be
     *  set without one. */
    async join(room) {
      this.#room = room;
      if (this.#presented) await this.#request(Operation.CHANGE_ROOM, room);
    }

    async leave() {
      await this.join("");
    }

    /** Subscribes to operations. Subscriptions survive a lost connection. */
    async subscribe(...operations) {
      for (const operation of operations) this.#accepts.add(operation);
      if (this.#presented) await this.#request(Operation.SUBSCRIBE, operations.join(","));
    }

    async unsubscribe(...operations) {
      for (const operation of operations) this.#accepts.delete(operation);
      if (this.#presented) await this.#request(Operation.UNSUBSCRIBE, operations.join(","));
    }

    /** Sends a packet to the backend: text or bytes, at most 4096 bytes. Resolves to the reply with the
     *  backend's body. Rejects without a connection, and when it is lost before the reply; the packet
     *  may then have arrived or not. */
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
        if (socket === this.#socket) this.#lost("no reply to a heartbeat");
        return;
      }
      // A listener may have closed the connection.
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
          this.#pending.delete(sequence);
          reject(new Error("no reply in time"));
        }, this.#options.replyTimeout);
        this.#pending.set(sequence, { operation: REPLIES.get(operation) ?? operation, resolve, reject, timer });
        this.#socket.send(packet);
        this.#emit("packet", { sent: true, packet: decode(packet)[0] });
      });
    }

    #receive(data) {
      try {
        for (const packet of decode(new Uint8Array(data))) {
          this.#emit("packet", { sent: false, packet });
          // Over WebSocket every push is in a batch, also a single one.
          if (packet.operation === Operation.BATCH) decode(packet.body).forEach((push) => this.#emit("message", push));
          else if (!this.#resolve(packet)) this.#emit("message", packet);
        }
      } catch (error) {
        // Data after a malformed packet cannot be interpreted.
        this.#lost(error.message);
      }
    }

    /** Resolves the request that a packet replies to. Returns false if there is none. */
    #resolve(packet) {
      const request = this.#pending.get(packet.sequence);
      if (request?.operation !== packet.operation) return false;
      this.#pending.delete(packet.sequence);
      clearTimeout(request.timer);
      request.resolve(packet);
      return true;
    }

    #lost(reason, reconnect = true) {
      clearTimeout(this.#timer);
      const socket = this.#socket;
      this.#socket = null;
      this.#presented = this.#ready = false;
      if (socket) {
        // On a dead network the browser may report the close very late, so the events are dropped.
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close();
      }
      for (const { reject, timer } of this.#pending.values()) {
        clearTimeout(timer);
        reject(new Error(reason));
      }
      this.#pending.clear();
      const retryIn = reconnect ? backoffDelay(this.#options.backoff, this.#attempt++) : null;
      if (reconnect) this.#timer = setTimeout(() => this.connect(), retryIn);
      this.#emit("close", { reason, retryIn });
    }

    #emit(type, detail) {
      this.dispatchEvent(new CustomEvent(type, { detail }));
    }
  }

  return Object.freeze({ Client, Operation, encode, decode, backoffDelay });
})();
