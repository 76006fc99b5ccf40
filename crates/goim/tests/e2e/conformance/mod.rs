//! goim's observable behaviour, row by row, and what this server adds to it, over real sockets.

mod auth;
mod deflate;
mod dialogues;
mod events;
mod framing;
mod http;
mod jwt;
mod members;
mod members_http;
mod push;
mod routes;
mod rows;
mod rpc;
mod session;
mod sessions_api;
mod timelines;
mod upstream;
mod versions;
mod webhook;
mod websocket;
