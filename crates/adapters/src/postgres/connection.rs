//! Connections that are opened on first use and reopened when they break, and their prepared
//! statements.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};

use goim_ports::TimelineError;

/// Why PostgreSQL cannot be used for timelines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostgresError {
    /// The address cannot be parsed. Neither it nor the reason is shown: a password may be in any
    /// part of it.
    #[error("the address cannot be read; expected postgres://user:password@host:port/database")]
    Address,
    /// The server does not answer, or refuses.
    #[error("postgres {target}: {reason}")]
    Unavailable {
        /// Hosts, ports and database, without a password.
        target: String,
        /// The error of the server or the system.
        reason: String,
    },
    /// The server rejects the credentials or the database name. Retrying does not help.
    #[error("postgres {target} rejects the login of this address: {reason}")]
    Rejected {
        /// Hosts, ports and database, without a password.
        target: String,
        /// The error of the server.
        reason: String,
    },
    /// The tables have a version that this process does not support.
    #[error(
        "postgres {target}: holds timelines of version {found}, and this version of goim supports version {supported}: use the version that wrote them"
    )]
    Schema {
        /// Hosts, ports and database, without a password.
        target: String,
        /// The version of the tables.
        found: i64,
        /// The newest version that this process supports.
        supported: i64,
    },
}

/// Where to connect, and the deadline.
#[derive(Clone)]
pub(super) struct ConnectionTarget {
    config: Arc<tokio_postgres::Config>,
    /// For logs and errors: without a password.
    pub(super) name: Arc<str>,
    pub(super) deadline: Duration,
}

impl ConnectionTarget {
    pub(super) fn new(url: &str, deadline: Duration) -> Result<Self, PostgresError> {
        let Ok(mut config) = escaped(url).parse::<tokio_postgres::Config>() else {
            return Err(PostgresError::Address);
        };
        // An address without a host parses, but names nothing.
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(PostgresError::Address);
        }
        let name = display_name(&config);
        config.connect_timeout(deadline).application_name("goim");
        config.tcp_user_timeout(deadline.saturating_mul(2));
        Ok(Self { config: Arc::new(config), name: name.into(), deadline })
    }

    pub(super) async fn connect(&self) -> Result<Client, PostgresError> {
        let failed = |reason: String| PostgresError::Unavailable { target: self.name.to_string(), reason };
        let connecting = tokio::time::timeout(self.deadline, self.config.connect(NoTls)).await;
        let connected = connecting.map_err(|_| failed(format!("no answer within {:?}", self.deadline)))?;
        let (client, connection) = connected.map_err(|error| match is_rejection(&error) {
            true => PostgresError::Rejected { target: self.name.to_string(), reason: text_of(&error) },
            false => failed(text_of(&error)),
        })?;
        let name = Arc::clone(&self.name);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(postgres = &*name, error = text_of(&error), "connection closed");
            }
        });
        Ok(client)
    }
}

/// Returns whether the server rejected the login, or the address lacks the password that the server
/// asks for.
fn is_rejection(error: &tokio_postgres::Error) -> bool {
    const REJECTIONS: [SqlState; 3] = [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_CATALOG_NAME,
    ];
    error.code().is_some_and(|code| REJECTIONS.contains(code))
        || std::error::Error::source(error).is_some_and(|source| source.to_string() == "password missing")
}

/// Escapes an unescaped `@` in the password: only the last `@` separates it from the host.
fn escaped(url: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = url.split_once("://") else { return Cow::Borrowed(url) };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, suffix) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((login, host)) if login.contains('@') => {
            Cow::Owned(format!("{scheme}://{}@{host}{suffix}", login.replace('@', "%40")))
        }
        _ => Cow::Borrowed(url),
    }
}

/// Returns hosts, ports and database of an address, for logs and errors.
fn display_name(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let port_of = |nth: usize| ports.get(nth).or(ports.first()).copied().unwrap_or(5432);
    let host = |(nth, host): (usize, &Host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port_of(nth)),
        Host::Unix(folder) => format!("{}:{}", folder.display(), port_of(nth)),
    };
    let hosts = config.get_hosts().iter().enumerate().map(host).collect::<Vec<_>>().join(",");
    match config.get_dbname() {
        Some(database) => format!("{hosts}/{database}"),
        None => hosts,
    }
}

/// A connection that is reopened when it has broken.
pub(super) struct Connection {
    target: ConnectionTarget,
    client: Mutex<Option<Arc<PreparedClient>>>,
}

/// An open connection with its prepared statements.
pub(super) struct PreparedClient {
    pub(super) client: Client,
    statements: Mutex<Vec<(&'static str, Statement)>>,
}

impl Connection {
    pub(super) fn new(target: ConnectionTarget) -> Self {
        Self { target, client: Mutex::default() }
    }

    pub(super) fn target(&self) -> &ConnectionTarget {
        &self.target
    }

    /// Returns the open connection, or opens one.
    pub(super) async fn client(&self) -> Result<Arc<PreparedClient>, TimelineError> {
        let mut current = self.client.lock().await;
        if let Some(client) = current.as_ref().filter(|client| !client.client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let made =
            self.target.connect().await.map_err(|error| TimelineError::Unavailable(error.to_string()))?;
        let made = Arc::new(PreparedClient { client: made, statements: Mutex::default() });
        *current = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Drops the connection, whose state is unknown. The next use opens another.
    pub(super) async fn reset(&self) {
        *self.client.lock().await = None;
    }

    /// Runs one statement within the deadline and returns its rows. Retries once when the
    /// connection turns out to be closed.
    pub(super) async fn query(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, TimelineError> {
        let mut last = TimelineError::Unavailable(String::new());
        for _ in 0..2 {
            let prepared = self.client().await?;
            let query = async {
                let statement = prepared.statement(text).await?;
                prepared.client.query(&statement, values).await
            };
            match tokio::time::timeout(self.target.deadline, query).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => {
                    last = self.unavailable(&error);
                    if !error.is_closed() && !prepared.client.is_closed() {
                        return Err(last);
                    }
                }
                Err(_) => {
                    self.reset().await;
                    let reason =
                        format!("postgres {}: no answer within {:?}", self.target.name, self.target.deadline);
                    return Err(TimelineError::Unavailable(reason));
                }
            }
        }
        Err(last)
    }

    pub(super) fn unavailable(&self, error: &tokio_postgres::Error) -> TimelineError {
        TimelineError::Unavailable(format!("postgres {}: {}", self.target.name, text_of(error)))
    }
}

impl PreparedClient {
    /// Returns the statement, prepared on first use.
    pub(super) async fn statement(&self, text: &'static str) -> Result<Statement, tokio_postgres::Error> {
        let mut statements = self.statements.lock().await;
        if let Some((_, statement)) = statements.iter().find(|(prepared, _)| *prepared == text) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(text).await?;
        statements.push((text, statement.clone()));
        Ok(statement)
    }
}

/// Returns the server's message, or the cause of a client error.
pub(super) fn text_of(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => error.message().to_owned(),
        None => std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_forms_are_parsed_and_shown_without_passwords() {
        for (url, password, name) in [
            ("postgres://goim:sesame@h:1/db", "sesame", "h:1/db"),
            ("postgresql://goim:p@sesame@h/db?connect_timeout=1", "p@sesame", "h:5432/db"),
            ("postgres://goim:p%40sesame@h/db", "p@sesame", "h:5432/db"),
            ("postgres://h:1/db?user=goim&password=sesame", "sesame", "h:1/db"),
            ("postgres://goim:sesame@h1:1,h2:2/db", "sesame", "h1:1,h2:2/db"),
            ("postgres://goim:sesame@%2Frun%2Fpg/db", "sesame", "/run/pg:5432/db"),
            ("host=h port=1 user=goim password=sesame dbname=db", "sesame", "h:1/db"),
            ("host=/run/pg user=goim password='p sesame'", "p sesame", "/run/pg:5432"),
        ] {
            let target = ConnectionTarget::new(url, Duration::from_secs(1)).unwrap();
            assert_eq!(target.config.get_password(), Some(password.as_bytes()), "{url}");
            assert_eq!(&*target.name, name, "{url}");
        }
        for url in ["", "sesame", "postgres://goim:sesame", "host=h sesame", "mysql://goim:sesame@h/db"] {
            let error = ConnectionTarget::new(url, Duration::from_secs(1)).err();
            assert_eq!(error, Some(PostgresError::Address), "{url}");
        }
    }
}
