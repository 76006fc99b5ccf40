//! What there is to set in a configuration: keys, texts, and access to the fields.

use crate::{Format, Input, Value};

type Get<C> = Box<dyn Fn(&C) -> Option<Value> + Send + Sync>;
type Set<C> = Box<dyn Fn(&mut C, Input<'_>) -> Option<()> + Send + Sync>;

/// One setting of the configuration `C`.
pub struct Setting<C> {
    key: String,
    text: &'static str,
    example: &'static str,
    secret: bool,
    sensitive: bool,
    expected: fn() -> String,
    get: Get<C>,
    set: Set<C>,
}

impl<C: 'static> Setting<C> {
    /// A setting that is a field of `C` in the format `F`.
    pub fn new<T: 'static, F: Format<T> + 'static>(
        key: impl Into<String>,
        text: &'static str,
        field: impl Fn(&C) -> &T + Send + Sync + 'static,
        field_mut: impl Fn(&mut C) -> &mut T + Send + Sync + 'static,
    ) -> Self {
        Self {
            key: key.into(),
            text,
            example: "",
            secret: false,
            sensitive: F::SENSITIVE,
            expected: F::expected,
            get: Box::new(move |config| F::show(field(config))),
            set: Box::new(move |config, input| {
                *field_mut(config) = F::read(input)?;
                Some(())
            }),
        }
    }

    /// With a value to show in the documented configuration, where there is no default.
    #[must_use]
    pub fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    /// Never printed.
    #[must_use]
    pub fn secret(mut self, secret: bool) -> Self {
        self.secret = secret;
        self
    }

    /// The path of the field, for example `comet.limits.handshake_timeout`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What it means, with units, bounds and costs.
    #[must_use]
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// A value to show where there is no default; empty if there is one.
    #[must_use]
    pub fn shown_example(&self) -> &'static str {
        self.example
    }

    /// True if a value that was set must not be printed.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.secret
    }

    /// True if text that cannot be read as a value must not be printed.
    #[must_use]
    pub fn is_sensitive(&self) -> bool {
        self.secret || self.sensitive
    }

    /// What a good value looks like, to follow "must be".
    #[must_use]
    pub fn expected(&self) -> String {
        (self.expected)()
    }

    /// The value in `config`; `None` if it is not set.
    #[must_use]
    pub fn get(&self, config: &C) -> Option<Value> {
        (self.get)(config)
    }

    /// Sets the value in `config`; `None`, and nothing set, if the input is not a value of this
    /// setting.
    #[must_use]
    pub fn set(&self, config: &mut C, input: Input<'_>) -> Option<()> {
        (self.set)(config, input)
    }

    fn nest<P: 'static>(self, name: &str, down: fn(&P) -> &C, down_mut: fn(&mut P) -> &mut C) -> Setting<P> {
        let Self { key, text, example, secret, sensitive, expected, get, set } = self;
        Setting {
            key: joined(name, &key),
            text,
            example,
            secret,
            sensitive,
            expected,
            get: Box::new(move |outer| get(down(outer))),
            set: Box::new(move |outer, input| set(down_mut(outer), input)),
        }
    }
}

impl<C> std::fmt::Debug for Setting<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setting").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The text above the settings of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The path of the group; empty for the root.
    pub key: String,
    /// What the group is about.
    pub text: &'static str,
}

/// All settings of the configuration `C`, in the order in which they are printed.
#[derive(Debug)]
pub struct Schema<C> {
    /// The groups with settings.
    pub sections: Vec<Section>,
    /// The settings: those of a group before those of the groups in it.
    pub settings: Vec<Setting<C>>,
}

impl<C: 'static> Schema<C> {
    /// The schema of a group with these settings and these groups in it.
    #[must_use]
    pub fn of(text: &'static str, own: Vec<Setting<C>>, groups: Vec<Self>) -> Self {
        let sections = if own.is_empty() { vec![] } else { vec![Section { key: String::new(), text }] };
        groups.into_iter().fold(Self { sections, settings: own }, |mut all, group| {
            all.sections.extend(group.sections);
            all.settings.extend(group.settings);
            all
        })
    }

    /// The same as the group `name` of a larger configuration, about `text`. With an empty name the
    /// settings become those of the larger group.
    #[must_use]
    pub fn nest<P: 'static>(
        self,
        name: &str,
        text: &'static str,
        down: fn(&P) -> &C,
        down_mut: fn(&mut P) -> &mut C,
    ) -> Schema<P> {
        let sections = self.sections.into_iter().map(|section| Section {
            text: if section.key.is_empty() { text } else { section.text },
            key: joined(name, &section.key),
        });
        Schema {
            sections: sections.filter(|section| !section.key.is_empty()).collect(),
            settings: self.settings.into_iter().map(|setting| setting.nest(name, down, down_mut)).collect(),
        }
    }
}

/// A path of two parts; each may be empty.
pub(crate) fn joined(first: &str, second: &str) -> String {
    if first.is_empty() || second.is_empty() {
        format!("{first}{second}")
    } else {
        format!("{first}.{second}")
    }
}
