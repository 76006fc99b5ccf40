//! A minimal Protocol Buffers codec, as far as the bodies of operations 4, 5 and 20 to 24 need it:
//! numbers, bytes, and messages as bytes.

/// A message that is being written.
#[derive(Default, Clone)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A number; zero is left out.
    pub fn number(mut self, tag: u32, value: u64) -> Self {
        if value != 0 {
            self.varint(u64::from(tag) << 3);
            self.varint(value);
        }
        self
    }

    /// A text, bytes or a message.
    pub fn bytes(mut self, tag: u32, value: impl AsRef<[u8]>) -> Self {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(value.as_ref().len() as u64);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    /// What was written.
    pub fn done(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A message that was read.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Fields(Vec<(u32, Field)>);

#[derive(Debug, Clone, PartialEq)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Fields {
    /// Reads a message.
    ///
    /// # Panics
    /// When it is none.
    pub fn read(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let head = varint(&mut bytes);
            let tag = u32::try_from(head >> 3).unwrap();
            fields.push(match head & 7 {
                0 => (tag, Field::Number(varint(&mut bytes))),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    let (field, rest) = bytes.split_at(length);
                    bytes = rest;
                    (tag, Field::Bytes(field.to_vec()))
                }
                kind => panic!("field {tag} has wire type {kind}"),
            });
        }
        Self(fields)
    }

    /// A number; zero when it is absent.
    pub fn number(&self, tag: u32) -> u64 {
        let found = self.0.iter().rev().find(|(own, _)| *own == tag);
        found.map_or(0, |(_, field)| match field {
            Field::Number(number) => *number,
            Field::Bytes(_) => panic!("field {tag} is no number"),
        })
    }

    /// Bytes; empty when they are absent.
    pub fn bytes(&self, tag: u32) -> Vec<u8> {
        self.all(tag).pop().unwrap_or_default()
    }

    /// A text.
    pub fn text(&self, tag: u32) -> String {
        String::from_utf8(self.bytes(tag)).unwrap()
    }

    /// A message.
    pub fn message(&self, tag: u32) -> Self {
        Self::read(&self.bytes(tag))
    }

    /// All messages of a list.
    pub fn messages(&self, tag: u32) -> Vec<Self> {
        self.all(tag).iter().map(|bytes| Self::read(bytes)).collect()
    }

    fn all(&self, tag: u32) -> Vec<Vec<u8>> {
        let of_tag = self.0.iter().filter(|(own, _)| *own == tag);
        of_tag
            .map(|(_, field)| match field {
                Field::Bytes(bytes) => bytes.clone(),
                Field::Number(_) => panic!("field {tag} is a number"),
            })
            .collect()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first().expect("a number ends");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}
