//! The table of routes. Dispatch, the parsing of parameters and the OpenAPI document are driven by
//! it, so that they agree.

use axum::http::Method;

/// A route and its properties.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) verb: Verb,
    pub(crate) path: &'static str,
    pub(super) action: Action,
    /// The limit of the request body.
    pub(super) body: BodyMax,
    /// In goim v2's order, in which errors are reported.
    pub(super) params: &'static [Param],
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
}

/// The method of a route. Any other method does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
}

/// The handler of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    PushKeys,
    PushMids,
    PushRoom,
    PushAll,
    PushBatch,
    EndSessions,
    RoomMembers,
    Sync,
    History,
    Unread,
    Ack,
    DeleteMessage,
    OnlineTop,
    OnlineRoom,
    OnlineTotal,
    NodesWeighted,
    NodesInstances,
    Protocol,
    OpenApi,
}

/// The limit of a route's request bodies. A requester who must be identified is identified before
/// the body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyMax {
    /// The route has no body.
    None,
    /// This many bytes, or the setting if it is smaller.
    Bytes(usize),
    /// The setting `logic.http.body_bytes_max`.
    Setting,
}

impl BodyMax {
    /// Returns the limit in bytes, given the setting.
    pub(super) fn bytes(self, setting: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Bytes(bytes) => bytes.min(setting),
            Self::Setting => setting,
        }
    }
}

/// An object with a timeline's name, of at most some 2,600 bytes, and a number.
const MESSAGE_REF_BODY: BodyMax = BodyMax::Bytes(4 * 1024);

/// A parameter in the query string.
#[derive(Debug)]
pub(super) struct Param {
    pub(super) name: &'static str,
    /// The name in goim v2's error messages.
    pub(super) field: &'static str,
    pub(super) kind: ParamKind,
    /// The value must not be 0, an empty text, or an absent list.
    pub(super) required: bool,
    pub(super) description: &'static str,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParamKind {
    I32,
    I64,
    Text,
    /// One parameter per element.
    TextList,
    /// One parameter per element.
    I64List,
}

/// The maximum number of parameters of a route.
pub(super) const PARAMS_MAX: usize = 7;

const OPERATION: Param = Param {
    name: "operation",
    field: "Op",
    kind: ParamKind::I32,
    required: false,
    description: "The operation of the packet. Only sessions that subscribed to it receive the message.",
};

const REQUIRED_OPERATION: Param = Param { required: true, ..OPERATION };

const ROOM_TYPE: Param = Param {
    name: "type",
    field: "Type",
    kind: ParamKind::Text,
    required: true,
    description: "The part of the room's id before `://`.",
};

const DELIVERY: Param = Param {
    name: "delivery",
    field: "Delivery",
    kind: ParamKind::Text,
    required: false,
    description: "`transient` (default): pushed and not stored, as in goim v2. `stored`: appended to the \
                  timelines and answered with the positions once it is durable. Not in goim v2.",
};

const IDEMPOTENCY_KEY: Param = Param {
    name: "idempotency_key",
    field: "IdempotencyKey",
    kind: ParamKind::Text,
    required: false,
    description: "With `delivery=stored`: a repeated request with the same key, within the window, gets \
                  the positions of the first one. 1 to 128 bytes. Not in goim v2.",
};

const TIMELINE: Param = Param {
    name: "timeline",
    field: "Timeline",
    kind: ParamKind::Text,
    required: true,
    description: "`mid://<mid>` for a member's inbox, or a room, `type://room`.",
};

const MID: Param = Param {
    name: "mid",
    field: "Mid",
    kind: ParamKind::I64,
    required: false,
    description: "The member. For the backend, and for clients that are not authenticated (`open`).",
};

const PROTOVER: Param = Param {
    name: "protover",
    field: "Protover",
    kind: ParamKind::I32,
    required: false,
    description: "The highest packet version that the client reads. All versions by default.",
};

const LIMIT: Param = Param {
    name: "limit",
    field: "Limit",
    kind: ParamKind::I32,
    required: false,
    description: "The maximum number of messages. The default and the upper bound are the server's setting.",
};

impl Route {
    /// All routes.
    pub(crate) const ALL: &'static [Self] = &[
        Self {
            verb: Verb::Post,
            path: "/goim/push/keys",
            action: Action::PushKeys,
            body: BodyMax::Setting,
            params: &[
                OPERATION,
                Param {
                    name: "keys",
                    field: "Keys",
                    kind: ParamKind::TextList,
                    required: false,
                    description: "The keys of the sessions. Without a key the code is -400.",
                },
                DELIVERY,
            ],
            summary: "Push to sessions",
            description: "A key that is given twice gets the message twice. Keys without a session are \
                          ignored. Every failure has code -400 and no message.",
        },
        Self {
            verb: Verb::Post,
            path: "/goim/push/mids",
            action: Action::PushMids,
            body: BodyMax::Setting,
            params: &[
                OPERATION,
                Param {
                    name: "mids",
                    field: "Mids",
                    kind: ParamKind::I64List,
                    required: false,
                    description: "The members. Zero and negative numbers are ignored.",
                },
                DELIVERY,
                IDEMPOTENCY_KEY,
            ],
            summary: "Push to all sessions of members",
            description: "Each session receives the message once, however often its member is given.",
        },
        Self {
            verb: Verb::Post,
            path: "/goim/push/room",
            action: Action::PushRoom,
            body: BodyMax::Setting,
            params: &[
                Param {
                    description: "The operation of the packet. All sessions in the room receive the \
                                  message, subscribed or not.",
                    ..REQUIRED_OPERATION
                },
                ROOM_TYPE,
                Param {
                    name: "room",
                    field: "Room",
                    kind: ParamKind::Text,
                    required: true,
                    description: "The part of the room's id after `://`.",
                },
                DELIVERY,
                IDEMPOTENCY_KEY,
            ],
            summary: "Push to a room",
            description: "All sessions that are in the room `type://room` when the message arrives receive \
                          it.",
        },
        Self {
            verb: Verb::Post,
            path: "/goim/push/all",
            action: Action::PushAll,
            body: BodyMax::Setting,
            params: &[
                REQUIRED_OPERATION,
                Param {
                    name: "speed",
                    field: "Speed",
                    kind: ParamKind::I32,
                    required: false,
                    description: "Sessions per second over all comets; 0 and below are unlimited.",
                },
                DELIVERY,
            ],
            summary: "Push to all sessions",
            description: "All sessions that subscribed to the operation get the message.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/push",
            action: Action::PushBatch,
            body: BodyMax::Setting,
            params: &[],
            summary: "Push many messages",
            description: "Accepts the messages in order, at most 10,000. When a message is invalid the \
                          error names it and none is accepted. When the push log is full the first \
                          `accepted` messages are accepted; send the rest after Retry-After. The rate \
                          limit counts the request, not its messages.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/sessions/end",
            action: Action::EndSessions,
            body: BodyMax::Bytes(1 << 20),
            params: &[],
            summary: "End sessions",
            description: "Ends the sessions of keys, of members or of a room as soon as the order reaches \
                          their comets. A negotiated client receives the reason: after `kicked` (default) \
                          it does not reconnect, after `revoked` it reconnects with a new token. To keep a \
                          member out, refuse its token too.",
        },
        Self {
            verb: Verb::Get,
            path: "/v1/rooms/members",
            action: Action::RoomMembers,
            body: BodyMax::None,
            params: &[
                ROOM_TYPE,
                Param {
                    name: "room",
                    field: "Room",
                    kind: ParamKind::Text,
                    required: true,
                    description: "The part of the room's id after `://`.",
                },
                Param {
                    name: "limit",
                    field: "Limit",
                    kind: ParamKind::I64,
                    required: true,
                    description: "The maximum number of sessions in the answer, 1 to 10000.",
                },
            ],
            summary: "List the sessions of a room",
            description: "Returns some sessions of the room with their members, in no order, and the \
                          number of sessions over all comets. Needs an API key where one is configured.",
        },
        Self {
            verb: Verb::Get,
            path: "/v1/sync",
            action: Action::Sync,
            body: BodyMax::None,
            params: &[
                TIMELINE,
                Param {
                    name: "epoch",
                    field: "Epoch",
                    kind: ParamKind::I64,
                    required: false,
                    description: "The epoch of the client's position. The member's cursor by default.",
                },
                Param {
                    name: "seq",
                    field: "Seq",
                    kind: ParamKind::I64,
                    required: false,
                    description: "The sequence number of the client's position.",
                },
                LIMIT,
                Param {
                    name: "wait",
                    field: "Wait",
                    kind: ParamKind::Text,
                    required: false,
                    description: "How long to wait for messages when there are none, such as `30s`.",
                },
                MID,
                PROTOVER,
            ],
            summary: "Read the messages after a position",
            description: "For members, with their token. `gap` is true when messages between the client's \
                          position and the returned ones are missing. With `Accept: text/event-stream` the \
                          answer is a stream of events, which resumes after Last-Event-ID; with `Accept: \
                          application/octet-stream` it is the packet of operation 22.",
        },
        Self {
            verb: Verb::Get,
            path: "/v1/history",
            action: Action::History,
            body: BodyMax::None,
            params: &[
                TIMELINE,
                Param {
                    name: "before",
                    field: "Before",
                    kind: ParamKind::I64,
                    required: false,
                    description: "The page ends before this sequence number. The newest page by default.",
                },
                LIMIT,
                MID,
                PROTOVER,
            ],
            summary: "Read a timeline backwards, in pages",
            description: "For members, with their token, and for the backend, with an API key. A page is \
                          in ascending order.",
        },
        Self {
            verb: Verb::Get,
            path: "/v1/unread",
            action: Action::Unread,
            body: BodyMax::None,
            params: &[
                Param {
                    name: "timelines",
                    field: "Timelines",
                    kind: ParamKind::TextList,
                    required: true,
                    description: "The timelines, `mid://<mid>` or `type://room`.",
                },
                MID,
            ],
            summary: "Count unread messages",
            description: "Counts the stored messages after the member's cursor. For members, with their \
                          token, and for the backend, with an API key and `mid`.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/ack",
            action: Action::Ack,
            body: MESSAGE_REF_BODY,
            params: &[MID],
            summary: "Move a member's cursor",
            description: "For members, with their token: marks all messages up to `seq` as read. A cursor \
                          never moves backwards.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/messages/delete",
            action: Action::DeleteMessage,
            body: MESSAGE_REF_BODY,
            params: &[],
            summary: "Delete a message",
            description: "Deletes the body and keeps the sequence number, so that clients see no gap.",
        },
        Self {
            verb: Verb::Get,
            path: "/goim/online/top",
            action: Action::OnlineTop,
            body: BodyMax::None,
            params: &[
                ROOM_TYPE,
                Param {
                    name: "limit",
                    field: "Limit",
                    kind: ParamKind::I64,
                    required: true,
                    description: "The maximum number of rooms in the answer; not negative.",
                },
            ],
            summary: "The largest rooms of a type",
            description: "Ordered by count, largest first, then by name.",
        },
        Self {
            verb: Verb::Get,
            path: "/goim/online/room",
            action: Action::OnlineRoom,
            body: BodyMax::None,
            params: &[
                ROOM_TYPE,
                Param {
                    name: "rooms",
                    field: "Rooms",
                    kind: ParamKind::TextList,
                    required: true,
                    description: "The parts of the rooms' ids after `://`.",
                },
            ],
            summary: "Sessions in rooms",
            description: "An empty room has 0.",
        },
        Self {
            verb: Verb::Get,
            path: "/goim/online/total",
            action: Action::OnlineTotal,
            body: BodyMax::None,
            params: &[],
            summary: "Connections over all comets",
            description: "Comets that are offline are not counted.",
        },
        Self {
            verb: Verb::Get,
            path: "/goim/nodes/weighted",
            action: Action::NodesWeighted,
            body: BodyMax::None,
            params: &[Param {
                name: "platform",
                field: "Platform",
                kind: ParamKind::Text,
                required: false,
                description: "`web` gets host names, every other platform the comets' public addresses.",
            }],
            summary: "Nodes that a client should connect to",
            description: "At most five comets, the best first, with ports, heartbeat and backoff. Members \
                          that are zero or empty are left out.",
        },
        Self {
            verb: Verb::Get,
            path: "/goim/nodes/instances",
            action: Action::NodesInstances,
            body: BodyMax::None,
            params: &[],
            summary: "Comets that accept clients",
            description: "`null` while there are none.",
        },
        Self {
            verb: Verb::Get,
            path: "/v1/protocol",
            action: Action::Protocol,
            body: BodyMax::None,
            params: &[],
            summary: "Packet versions",
            description: "The schema and the encoding of each packet version. The meaning of a version \
                          never changes; a client may name a version that it reads as its protover.",
        },
        Self {
            verb: Verb::Get,
            path: "/openapi.json",
            action: Action::OpenApi,
            body: BodyMax::None,
            params: &[],
            summary: "This document",
            description: "The description of this API, OpenAPI 3.1.",
        },
    ];

    /// Returns the index of the route with this method and path.
    pub(super) fn find(method: &Method, path: &str) -> Option<usize> {
        Self::ALL.iter().position(|route| route.path == path && route.verb.is(method))
    }

    /// True when requests have a body.
    pub(super) fn has_body(&self) -> bool {
        self.body != BodyMax::None
    }

    /// True when only the backend may use the route.
    pub(super) fn is_protected(&self) -> bool {
        match self.action {
            Action::Ack => false,
            Action::RoomMembers => true,
            _ => self.verb == Verb::Post,
        }
    }

    /// True when the handler identifies the requester.
    pub(super) fn is_for_members(&self) -> bool {
        matches!(self.action, Action::Sync | Action::History | Action::Unread | Action::Ack)
    }
}

impl Verb {
    fn is(self, method: &Method) -> bool {
        match self {
            Self::Get => method == Method::GET,
            Self::Post => method == Method::POST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for (index, route) in Route::ALL.iter().enumerate() {
            assert!(route.params.len() <= PARAMS_MAX, "{}", route.path);
            assert!(route.path.starts_with('/') && !route.path.ends_with('/'), "{}", route.path);
            let method = if route.verb == Verb::Get { Method::GET } else { Method::POST };
            assert_eq!(Route::find(&method, route.path), Some(index), "{} is in the table twice", route.path);
            assert_eq!(Route::find(&Method::HEAD, route.path), None);
            assert_eq!(route.has_body(), route.verb == Verb::Post, "{}", route.path);
        }
    }
}
