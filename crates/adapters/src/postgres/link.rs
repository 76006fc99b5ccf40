//! Connections: made when they are first wanted and made again when they have broken, with the statements that are used on them.

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
    /// The address makes no sense. It is not shown, nor what is wrong with it: a password may be in any part of it.
    #[error("the address cannot be read; wants postgres://user:password@host:port/database")]
    Address,
    /// It does not answer, or refuses.
    #[error("postgres {place}: {reason}")]
    Unavailable {
        /// Where it should be, without a password.
        place: String,
        /// What it says.
        reason: String,
    },
    /// It answers, and does not let this process in: a wrong password, no such database. Waiting
    /// does not mend it.
    #[error("postgres {place} lets nobody in with this address: {reason}")]
    Rejected {
        /// Where it is, without a password.
        place: String,
        /// What it says.
        reason: String,
    },
    /// The tables are of another version.
    #[error(
        "postgres {place}: has timelines of version {found}, and this reads up to version {known}: use the version that wrote them"
    )]
    Schema {
        /// Where it is.
        place: String,
        /// What the tables say.
        found: i64,
        /// What is known here.
        known: i64,
    },
}

/// Where PostgreSQL is.
#[derive(Clone)]
pub(super) struct Place {
    config: Arc<tokio_postgres::Config>,
    /// Without a password.
    pub(super) name: Arc<str>,
    pub(super) deadline: Duration,
}

impl Place {
    pub(super) fn new(url: &str, deadline: Duration) -> Result<Self, PostgresError> {
        let Ok(mut config) = escaped(url).parse::<tokio_postgres::Config>() else {
            return Err(PostgresError::Address);
        };
        // What names no place, as an empty text, is no address either.
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(PostgresError::Address);
        }
        let name = shown(&config);
        config.connect_timeout(deadline).application_name("goim");
        config.tcp_user_timeout(deadline.saturating_mul(2));
        Ok(Self { config: Arc::new(config), name: name.into(), deadline })
    }

    pub(super) async fn connect(&self) -> Result<Client, PostgresError> {
        let failed = |reason: String| PostgresError::Unavailable { place: self.name.to_string(), reason };
        let connecting = tokio::time::timeout(self.deadline, self.config.connect(NoTls)).await;
        let connected = connecting.map_err(|_| failed(format!("no answer within {:?}", self.deadline)))?;
        let (client, connection) = connected.map_err(|error| match is_rejection(&error) {
            true => PostgresError::Rejected { place: self.name.to_string(), reason: text_of(&error) },
            false => failed(text_of(&error)),
        })?;
        let name = Arc::clone(&self.name);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(postgres = &*name, error = text_of(&error), "a connection has ended");
            }
        });
        Ok(client)
    }
}

/// True when the server has judged who asks, or the address lacks what it wants to judge by.
fn is_rejection(error: &tokio_postgres::Error) -> bool {
    const REJECTIONS: [SqlState; 3] = [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_CATALOG_NAME,
    ];
    error.code().is_some_and(|code| REJECTIONS.contains(code))
        || std::error::Error::source(error).is_some_and(|source| source.to_string() == "password missing")
}

/// An address with a password that has an `@` in it as it is: the last one is before the host.
fn escaped(url: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = url.split_once("://") else { return Cow::Borrowed(url) };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((who, host)) if who.contains('@') => {
            Cow::Owned(format!("{scheme}://{}@{host}{behind}", who.replace('@', "%40")))
        }
        _ => Cow::Borrowed(url),
    }
}

/// Where it is, for people: hosts, ports and the database, and nothing else of the address.
fn shown(config: &tokio_postgres::Config) -> String {
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

/// A connection that is made again when it has broken.
pub(super) struct Link {
    place: Place,
    client: Mutex<Option<Arc<Prepared>>>,
}

/// A connection with its statements.
pub(super) struct Prepared {
    pub(super) client: Client,
    statements: Mutex<Vec<(&'static str, Statement)>>,
}

impl Link {
    pub(super) fn new(place: Place) -> Self {
        Self { place, client: Mutex::default() }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The connection, made if there is none that lives.
    pub(super) async fn get(&self) -> Result<Arc<Prepared>, TimelineError> {
        let mut current = self.client.lock().await;
        if let Some(client) = current.as_ref().filter(|client| !client.client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let made =
            self.place.connect().await.map_err(|error| TimelineError::Unavailable(error.to_string()))?;
        let made = Arc::new(Prepared { client: made, statements: Mutex::default() });
        *current = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Gives the connection up: what it does is not known any more.
    pub(super) async fn forget(&self) {
        *self.client.lock().await = None;
    }

    /// Rows of one statement, within the deadline. Asked once more on a new connection when the old one turns out to be gone.
    pub(super) async fn query(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, TimelineError> {
        let mut last = TimelineError::Unavailable(String::new());
        for _ in 0..2 {
            let prepared = self.get().await?;
            let asked = async {
                let statement = prepared.statement(text).await?;
                prepared.client.query(&statement, values).await
            };
            match tokio::time::timeout(self.place.deadline, asked).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => {
                    last = self.unavailable(&error);
                    if !error.is_closed() && !prepared.client.is_closed() {
                        return Err(last);
                    }
                }
                Err(_) => {
                    self.forget().await;
                    let reason =
                        format!("postgres {}: no answer within {:?}", self.place.name, self.place.deadline);
                    return Err(TimelineError::Unavailable(reason));
                }
            }
        }
        Err(last)
    }

    pub(super) fn unavailable(&self, error: &tokio_postgres::Error) -> TimelineError {
        TimelineError::Unavailable(format!("postgres {}: {}", self.place.name, text_of(error)))
    }
}

impl Prepared {
    /// The statement, prepared once.
    pub(super) async fn statement(&self, text: &'static str) -> Result<Statement, tokio_postgres::Error> {
        let mut statements = self.statements.lock().await;
        if let Some((_, statement)) = statements.iter().find(|(known, _)| *known == text) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(text).await?;
        statements.push((text, statement.clone()));
        Ok(statement)
    }
}

/// An error in the server's own words, where it has some.
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
    fn an_address_is_read_in_every_form_and_shown_without_what_is_secret() {
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
            let place = Place::new(url, Duration::from_secs(1)).unwrap();
            assert_eq!(place.config.get_password(), Some(password.as_bytes()), "{url}");
            assert_eq!(&*place.name, name, "{url}");
        }
        for url in ["", "sesame", "postgres://goim:sesame", "host=h sesame", "mysql://goim:sesame@h/db"] {
            let error = Place::new(url, Duration::from_secs(1)).err();
            assert_eq!(error, Some(PostgresError::Address), "{url}");
        }
    }
}
