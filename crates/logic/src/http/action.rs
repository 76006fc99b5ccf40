//! Calls the handler of a route once its parameters are read.

use axum::body::Bytes;

use super::error::{ApiError, Reply};
use super::query::QueryValues;
use super::reply;
use super::table::Action;
use super::timelines::{self, Requester};
use super::{directory, openapi, push};
use crate::logic::Logic;

/// Calls the handler of a route. `body` is empty for routes without one.
pub(super) async fn call(
    logic: &Logic,
    action: Action,
    values: &QueryValues<'_>,
    requester: Requester<'_>,
    body: Bytes,
) -> Reply {
    match action {
        Action::PushKeys => push::keys(logic, values, body).await,
        Action::PushMids => push::mids(logic, values, body).await,
        Action::PushRoom => push::room(logic, values, body).await,
        Action::PushAll => push::all(logic, values, body).await,
        Action::PushBatch => push::batch(logic, requester.headers, &body).await,
        Action::EndSessions => push::end_sessions(logic, &body).await,
        Action::RoomMembers => directory::room_members(logic, values).await,
        Action::Sync => timelines::sync(logic, values, requester).await,
        Action::History => timelines::history(logic, values, requester).await,
        Action::Unread => timelines::unread(logic, values, requester).await,
        Action::Ack => {
            // `dispatch` identifies the member before it reads the body.
            let reader = requester.reader.ok_or_else(ApiError::internal)?;
            timelines::acknowledge(logic, reader, &body).await
        }
        Action::DeleteMessage => timelines::delete(logic, &body).await,
        Action::OnlineTop => directory::online_top(logic, values).await,
        Action::OnlineRoom => Ok(directory::online_room(logic, values).await),
        Action::OnlineTotal => Ok(directory::online_total(logic)),
        Action::NodesWeighted => Ok(directory::nodes_weighted(logic, values)),
        Action::NodesInstances => Ok(directory::nodes_instances(logic)),
        Action::Protocol => Ok(directory::protocol(logic)),
        Action::OpenApi => Ok(reply::document(openapi::document())),
    }
}

/// Returns the error for a request that exceeded its deadline. Its handler was cancelled.
pub(super) fn timed_out(logic: &Logic, action: Action) -> ApiError {
    match action {
        Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll => {
            ApiError::goim_unknown_outcome()
        }
        Action::PushBatch | Action::EndSessions => ApiError::unknown_outcome(),
        _ => {
            let timeout = logic.config.http.request_timeout;
            ApiError::unavailable(format!("not done within {timeout:?}; it may be done in part"))
        }
    }
}
