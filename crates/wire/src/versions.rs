//! The table of packet versions: the schema of a body and its encoding.
//!
//! Both ends know it. A number never changes its meaning: rows are only added. A schema is only a
//! number here; the backend defines it. Compression is in another crate, since it needs `std`.

use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::Version;

/// A schema of the backend's bodies. Schema 1 is the one that goim's clients read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Schema(pub u16);

impl Schema {
    /// The schema that every client reads.
    pub const FIRST: Self = Self(1);
}

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// Not compressed.
    Identity,
    /// RFC 1950.
    Zlib,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// All encodings. Of two that a client reads, the later one is preferred.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Zlib, Self::Brotli, Self::Zstd];

    /// Returns the name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Zlib => "zlib",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }
}

/// A row of the table: the format of a body in a packet with this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRow {
    /// The version of the packet.
    pub version: Version,
    /// The schema of the body.
    pub schema: Schema,
    /// The encoding of the body.
    pub encoding: Encoding,
}

/// The fixed rows: 2 and 3 have the same meaning as in the most widely deployed variant of this
/// protocol.
const GIVEN: [VersionRow; 4] = [
    row(0, Encoding::Identity),
    row(1, Encoding::Identity),
    row(2, Encoding::Zlib),
    row(3, Encoding::Brotli),
];

const fn row(version: i16, encoding: Encoding) -> VersionRow {
    VersionRow { version: Version(version), schema: Schema::FIRST, encoding }
}

/// Why rows make no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Two rows have the same version.
    #[error("version {} is listed twice", .0.0)]
    Twice(Version),
    /// A fixed row has another meaning, or is missing.
    #[error("version {} must be `{}`", .0.version.0, .0)]
    Given(VersionRow),
    /// A version or a schema is below 1.
    #[error("`{0}`: versions and schemas start at 1")]
    Range(VersionRow),
}

/// The table of versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionTable {
    /// By version, ascending.
    rows: Vec<VersionRow>,
}

impl Default for VersionTable {
    fn default() -> Self {
        Self { rows: GIVEN.to_vec() }
    }
}

impl VersionTable {
    /// Creates a table of these rows, in any order.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn new(mut rows: Vec<VersionRow>) -> Result<Self, TableError> {
        rows.sort_unstable_by_key(|row| row.version);
        for pair in rows.windows(2) {
            if let [one, other] = pair
                && one.version == other.version
            {
                return Err(TableError::Twice(one.version));
            }
        }
        if let Some(wrong) = rows.iter().find(|row| row.version.0 < 0 || row.schema.0 == 0) {
            return Err(TableError::Range(*wrong));
        }
        match GIVEN.iter().find(|given| !rows.contains(given)) {
            Some(given) => Err(TableError::Given(*given)),
            None => Ok(Self { rows }),
        }
    }

    /// Returns the rows, ascending by version.
    #[must_use]
    pub fn rows(&self) -> &[VersionRow] {
        &self.rows
    }

    /// Returns the row of a version; `None` for an unknown one.
    #[must_use]
    pub fn row(&self, version: Version) -> Option<VersionRow> {
        let place = self.rows.binary_search_by_key(&version, |row| row.version).ok()?;
        self.rows.get(place).copied()
    }

    /// Returns the highest version.
    #[must_use]
    pub fn highest(&self) -> Version {
        self.rows.last().map_or(Version::GOIM, |row| row.version)
    }

    /// Returns the highest of the `available` schemas that a client reads with versions up to
    /// `protover`.
    #[must_use]
    pub fn schema_for(&self, protover: Version, available: impl Fn(Schema) -> bool) -> Option<Schema> {
        let readable = self.up_to(protover).map(|row| row.schema);
        readable.filter(|schema| available(*schema)).max()
    }

    /// Returns the row of this schema that is not compressed; if there is none, its lowest version.
    #[must_use]
    pub fn plain(&self, schema: Schema) -> Option<VersionRow> {
        let mut of_schema = self.rows.iter().filter(|row| row.schema == schema && row.version.0 > 0);
        let first = of_schema.clone().next();
        of_schema.find(|row| row.encoding == Encoding::Identity).or(first).copied()
    }

    /// Returns the row of the best encoding that a client reads with versions up to `protover`,
    /// whatever its schema: for runs of packets, which may have several schemas.
    #[must_use]
    pub fn best(&self, protover: Version) -> VersionRow {
        let goim = row(Version::GOIM.0, Encoding::Identity);
        self.up_to(protover).fold(goim, |best, row| if row.encoding > best.encoding { *row } else { best })
    }

    /// Returns the lowest version with this encoding.
    #[must_use]
    pub fn first_with(&self, encoding: Encoding) -> Option<Version> {
        let found = self.rows.iter().find(|row| row.encoding == encoding && row.version.0 > 0);
        found.map(|row| row.version)
    }

    fn up_to(&self, protover: Version) -> impl Iterator<Item = &VersionRow> {
        self.rows.iter().filter(move |row| row.version <= protover)
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `5 = schema 2, zstd`.
impl fmt::Display for VersionRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = schema {}, {}", self.version.0, self.schema.0, self.encoding)
    }
}

impl FromStr for Encoding {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|encoding| encoding.name() == text).ok_or(())
    }
}

/// Parses the text that `Display` writes.
impl FromStr for VersionRow {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (version, rest) = text.split_once('=').ok_or(())?;
        let (schema, encoding) =
            rest.trim().strip_prefix("schema").and_then(|rest| rest.split_once(',')).ok_or(())?;
        Ok(Self {
            version: Version(version.trim().parse().map_err(|_| ())?),
            schema: Schema(schema.trim().parse().map_err(|_| ())?),
            encoding: encoding.trim().parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;
    use alloc::vec;

    fn with(more: &[&str]) -> Result<VersionTable, TableError> {
        let mut rows = GIVEN.to_vec();
        rows.extend(more.iter().map(|text| text.parse::<VersionRow>().unwrap()));
        VersionTable::new(rows)
    }

    #[test]
    fn rows_are_text_and_back() {
        for text in ["4 = schema 2, identity", "5 = schema 2, zstd", "32767 = schema 65535, brotli"] {
            assert_eq!(text.parse::<VersionRow>().unwrap().to_string(), text);
        }
        assert!("5=schema 2,zstd".parse::<VersionRow>().is_ok());
        for text in [
            "",
            "5",
            "5 = 2, zstd",
            "5 = schema 2",
            "5 = schema 2, lzma",
            "x = schema 2, zstd",
            "5 = schema -1, zstd",
        ] {
            assert_eq!(text.parse::<VersionRow>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_number_never_changes_its_meaning() {
        assert_eq!(with(&["4 = schema 2, zstd", "4 = schema 2, zstd"]), Err(TableError::Twice(Version(4))));
        assert_eq!(
            with(&["4 = schema 0, zstd"]).unwrap_err().to_string(),
            "`4 = schema 0, zstd`: versions and schemas start at 1"
        );
        let error = VersionTable::new(vec![]).unwrap_err();
        assert_eq!(error.to_string(), "version 0 must be `0 = schema 1, identity`");
        let mut rows = GIVEN.to_vec();
        rows.retain(|row| row.version.0 != 2);
        rows.push(VersionRow { encoding: Encoding::Zstd, ..row(2, Encoding::Zlib) });
        assert_eq!(VersionTable::new(rows), Err(TableError::Given(GIVEN[2])));
    }

    #[test]
    fn everybody_gets_what_it_reads() {
        let table = with(&["4 = schema 2, identity", "5 = schema 2, zstd", "6 = schema 3, zstd"]).unwrap();
        let schema = |protover: i16, available: &[u16]| {
            table.schema_for(Version(protover), |schema| available.contains(&schema.0)).map(|schema| schema.0)
        };
        for (protover, available, expected) in [
            (0, &[1, 2, 3][..], Some(1)),
            (1, &[1, 2, 3], Some(1)),
            (3, &[1, 2, 3], Some(1)),
            (4, &[1, 2, 3], Some(2)),
            (5, &[1, 2, 3], Some(2)),
            (6, &[1, 2, 3], Some(3)),
            (9, &[1, 2, 3], Some(3)),
            (6, &[1, 2], Some(2)),
            (6, &[1], Some(1)),
            (3, &[2, 3], None),
            (5, &[3], None),
            (5, &[9], None),
        ] {
            assert_eq!(schema(protover, available), expected, "{protover} {available:?}");
        }
        let best = |protover: i16| table.best(Version(protover)).version.0;
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(best), [1, 1, 2, 3, 3, 5, 5]);
        let plain = |schema: u16| table.plain(Schema(schema)).map(|row| row.version.0);
        assert_eq!([1, 2, 3, 4].map(plain), [Some(1), Some(4), Some(6), None]);
        assert_eq!(table.highest(), Version(6));
    }
}
