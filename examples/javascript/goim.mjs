// goim.js as a module.
import "./goim.js";

export const { Client, Operation, encode, decode, backoffDelay } = globalThis.Goim;
