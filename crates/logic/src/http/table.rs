//! The routes. This table drives dispatch, the reading of parameters and the OpenAPI document, so that the three
//! cannot say different things.

use axum::http::Method;

/// A route with all that is known of it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) verb: Verb,
    pub(crate) path: &'static str,
    pub(super) action: Action,
    /// How much of a request's body is read.
    pub(super) body: BodyMax,
    /// In goim's order: errors are reported in it.
    pub(super) params: &'static [Param],
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
}

/// How a route is asked for. Any other method does not find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
}

/// What a route does.
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

/// The largest body of a route's requests. Who asks, where that matters, is found out before any of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyMax {
    /// There is none.
    None,
    /// So many bytes, and no more than the setting.
    Bytes(usize),
    /// `logic.http.body_bytes_max`.
    Setting,
}

impl BodyMax {
    /// In bytes, given the setting.
    pub(super) fn bytes(self, setting: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Bytes(bytes) => bytes.min(setting),
            Self::Setting => setting,
        }
    }
}

/// An object with the name of a timeline, of at most 2,600 bytes or so, and a number.
const PLACE_BODY: BodyMax = BodyMax::Bytes(4 * 1024);

/// A parameter in the query string.
#[derive(Debug)]
pub(super) struct Param {
    pub(super) name: &'static str,
    /// The name under which goim's error texts have it.
    pub(super) field: &'static str,
    pub(super) kind: Kind,
    /// A number must then not be 0, a text not empty, a list not absent.
    pub(super) required: bool,
    pub(super) description: &'static str,
}

/// What a parameter's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    I32,
    I64,
    Text,
    /// Given once for each element.
    TextList,
    /// Given once for each element.
    I64List,
}

/// Most parameters that a route has.
pub(super) const PARAMS_MAX: usize = 7;

const OPERATION: Param = Param {
    name: "operation",
    field: "Op",
    kind: Kind::I32,
    required: false,
    description: "Operation of the packet. A session gets it only when it subscribed to this operation.",
};

const REQUIRED_OPERATION: Param = Param { required: true, ..OPERATION };

const ROOM_TYPE: Param = Param {
    name: "type",
    field: "Type",
    kind: Kind::Text,
    required: true,
    description: "The part of the room's id before `://`.",
};

const DELIVERY: Param = Param {
    name: "delivery",
    field: "Delivery",
    kind: Kind::Text,
    required: false,
    description: "`transient` (or nothing): pushed and not kept, as in goim. `stored`: kept in the timeline first, and answered with the \
                  positions when it is durable. Not in goim.",
};

const IDEMPOTENCY_KEY: Param = Param {
    name: "idempotency_key",
    field: "IdempotencyKey",
    kind: Kind::Text,
    required: false,
    description: "With `delivery=stored`: a second request with this key, within the window, is answered with the first one's positions. 1 \
                  to 128 bytes. Not in goim.",
};

const TIMELINE: Param = Param {
    name: "timeline",
    field: "Timeline",
    kind: Kind::Text,
    required: true,
    description: "`mid://<mid>` for a member's inbox, or a room, `type://room`.",
};

const MID: Param = Param {
    name: "mid",
    field: "Mid",
    kind: Kind::I64,
    required: false,
    description: "The member: for the backend, and where clients are believed (`open`).",
};

const PROTOVER: Param = Param {
    name: "protover",
    field: "Protover",
    kind: Kind::I32,
    required: false,
    description: "The highest packet version that the client reads; nothing: all.",
};

const LIMIT: Param = Param {
    name: "limit",
    field: "Limit",
    kind: Kind::I32,
    required: false,
    description: "Most messages to answer; the server has a bound of its own, which is the default.",
};

impl Route {
    /// Every route.
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
                    kind: Kind::TextList,
                    required: false,
                    description: "Keys of the sessions. Without any the answer's code is -400.",
                },
                DELIVERY,
            ],
            summary: "Push to sessions",
            description: "A key that is given twice gets the message twice. Keys without a session are passed over. \
                          Every failure has the code -400 and no text.",
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
                    kind: Kind::I64List,
                    required: false,
                    description: "The members. Zero and below are passed over.",
                },
                DELIVERY,
                IDEMPOTENCY_KEY,
            ],
            summary: "Push to all sessions of members",
            description: "Each session gets the message once, however often its member is given.",
        },
        Self {
            verb: Verb::Post,
            path: "/goim/push/room",
            action: Action::PushRoom,
            body: BodyMax::Setting,
            params: &[
                Param {
                    description: "Operation of the packet. All sessions in the room get it, subscribed or not.",
                    ..REQUIRED_OPERATION
                },
                ROOM_TYPE,
                Param {
                    name: "room",
                    field: "Room",
                    kind: Kind::Text,
                    required: true,
                    description: "The part of the room's id after `://`.",
                },
                DELIVERY,
                IDEMPOTENCY_KEY,
            ],
            summary: "Push to a room",
            description: "All sessions that are in the room `type://room` when the message reaches them get it.",
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
                    kind: Kind::I32,
                    required: false,
                    description: "Sessions per second over all comets; 0 and below are as fast as it goes.",
                },
                DELIVERY,
            ],
            summary: "Push to everybody",
            description: "All sessions that subscribed to the operation get the message.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/push",
            action: Action::PushBatch,
            body: BodyMax::Setting,
            params: &[],
            summary: "Push many messages",
            description: "The messages are accepted in their order, at most 10,000. A message that is wrong is named, \
                          and then none is accepted. When the push log is full the first `accepted` of them are; go on \
                          with those behind after Retry-After. The limit of requests counts the request, not its \
                          messages.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/sessions/end",
            action: Action::EndSessions,
            body: BodyMax::Bytes(1 << 20),
            params: &[],
            summary: "End sessions",
            description: "The sessions of keys, of members or of a room end, as soon as the order reaches their comets. An extended \
                          client is told the reason: with `kicked` (the default) it stays away, with `revoked` it comes back with a new \
                          token. Whoever must not come back must be refused a token too.",
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
                    kind: Kind::Text,
                    required: true,
                    description: "The part of the room's id after `://`.",
                },
                Param {
                    name: "limit",
                    field: "Limit",
                    kind: Kind::I64,
                    required: true,
                    description: "Most sessions to answer, 1 to 10000.",
                },
            ],
            summary: "Who is in a room",
            description: "Some sessions of the room with their members, in no order, and how many there are on all comets. Needs an API \
                          key where one is configured.",
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
                    kind: Kind::I64,
                    required: false,
                    description: "Of the position that the client has; nothing: it begins at the member's cursor.",
                },
                Param {
                    name: "seq",
                    field: "Seq",
                    kind: Kind::I64,
                    required: false,
                    description: "Of the position that the client has.",
                },
                LIMIT,
                Param {
                    name: "wait",
                    field: "Wait",
                    kind: Kind::Text,
                    required: false,
                    description: "How long an answer without messages may be put off, such as `30s`.",
                },
                MID,
                PROTOVER,
            ],
            summary: "What comes behind a position",
            description: "For members, with their token. `gap` says that there is a hole between what the client has and these messages. \
                          With `Accept: text/event-stream` a stream of events, which goes on behind Last-Event-ID; with \
                          `Accept: application/octet-stream` the packet of operation 22.",
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
                    kind: Kind::I64,
                    required: false,
                    description: "The page ends before this sequence; nothing: it is the newest.",
                },
                LIMIT,
                MID,
                PROTOVER,
            ],
            summary: "A timeline backwards, in pages",
            description: "For members, with their token, and for the backend, with an API key. A page is in ascending order.",
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
                    kind: Kind::TextList,
                    required: true,
                    description: "The timelines, `mid://<mid>` or `type://room`.",
                },
                MID,
            ],
            summary: "How much a member has not read",
            description: "Messages behind the member's cursor that are kept. For members, with their token, and for the backend, with an \
                          API key and `mid`.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/ack",
            action: Action::Ack,
            body: PLACE_BODY,
            params: &[MID],
            summary: "Move a member's cursor",
            description: "For members, with their token: everything up to `seq` is read. A cursor never goes back.",
        },
        Self {
            verb: Verb::Post,
            path: "/v1/messages/delete",
            action: Action::DeleteMessage,
            body: PLACE_BODY,
            params: &[],
            summary: "Delete a message",
            description: "Its body goes, its place stays, so that no client takes it for a hole.",
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
                    kind: Kind::I64,
                    required: true,
                    description: "Most rooms to answer; not negative.",
                },
            ],
            summary: "The largest rooms of a type",
            description: "By count, largest first; rooms of one size by name.",
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
                    kind: Kind::TextList,
                    required: true,
                    description: "The parts of the rooms' ids after `://`.",
                },
            ],
            summary: "Sessions in rooms",
            description: "A room that nobody is in has 0.",
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
                kind: Kind::Text,
                required: false,
                description: "`web` gets host names; every other one the comets' public addresses.",
            }],
            summary: "Where a client should connect",
            description: "At most five comets, the best first, with ports, heartbeat and back-off. Members that are \
                          zero or empty are left out.",
        },
        Self {
            verb: Verb::Get,
            path: "/goim/nodes/instances",
            action: Action::NodesInstances,
            body: BodyMax::None,
            params: &[],
            summary: "The comets that take clients",
            description: "`null` while there are none.",
        },
        Self {
            verb: Verb::Get,
            path: "/v1/protocol",
            action: Action::Protocol,
            body: BodyMax::None,
            params: &[],
            summary: "What versions of packets mean",
            description: "The table of versions: the schema of a body and how it is encoded. A number never changes its meaning; a \
                          client that knows a version may name it as its protover.",
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

    /// The row of the route with this method and path.
    pub(super) fn find(method: &Method, path: &str) -> Option<usize> {
        Self::ALL.iter().position(|route| route.path == path && route.verb.is(method))
    }

    /// True for a route whose requests have a body.
    pub(super) fn has_body(&self) -> bool {
        self.body != BodyMax::None
    }

    /// True for a route that is for the backend only.
    pub(super) fn is_protected(&self) -> bool {
        match self.action {
            Action::Ack => false,
            Action::RoomMembers => true,
            _ => self.verb == Verb::Post,
        }
    }

    /// True for a route that finds out by itself who asks.
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
            assert_eq!(Route::find(&method, route.path), Some(index), "{} is there twice", route.path);
            assert_eq!(Route::find(&Method::HEAD, route.path), None);
            assert_eq!(route.has_body(), route.verb == Verb::Post, "{}", route.path);
        }
    }
}
