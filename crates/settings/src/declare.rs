//! The macro that declares a group of settings.

/// Declares a struct as a group of settings.
///
/// ```
/// use std::time::Duration;
///
/// goim_settings::settings! {
///     /// What one client may use.
///     #[derive(Debug, Clone)]
///     pub struct LimitsConfig {
///         /// The time from accept to the end of authentication.
///         #[setting(above_zero)]
///         pub handshake_timeout: Duration = Duration::from_secs(5),
///         /// The maximum size of an inbound body.
///         #[setting(bytes, at_least = 16)]
///         pub body_bytes_max: usize = 4096,
///         /// The maximum number of connections of one address. Not set: no limit.
///         #[setting(example = "1000")]
///         pub connections_per_address_max: Option<u32> = None,
///     }
/// }
/// assert_eq!(LimitsConfig::default().body_bytes_max, 4096);
/// ```
///
/// Options of a field, in `#[setting(...)]`:
///
/// | option | meaning |
/// |---|---|
/// | `example = "text"` | shown in place of a default |
/// | `bytes` | a number of bytes, written with its unit |
/// | `format = Type` | read and shown by this [`Format`](crate::Format) |
/// | `secret` | never printed |
/// | `above_zero` | must be greater than zero |
/// | `at_least = min` | must not be less |
/// | `range = a..=b` | must lie between |
/// | `check = function` | `fn(&T) -> Result<(), impl Display>` |
/// | `group` | a struct like this one, with a default; without a text it has that of the struct |
/// | `flatten` | a group whose settings become those of this one |
/// | `derived` | no setting: its value follows from another |
///
/// A setting without a text does not compile:
///
/// ```compile_fail
/// goim_settings::settings! {
///     /// A group.
///     pub struct Group {
///         pub level: u32 = 1,
///     }
/// }
/// ```
///
/// Neither does one without a default:
///
/// ```compile_fail
/// goim_settings::settings! {
///     /// A group.
///     pub struct Group {
///         /// A level.
///         pub level: u32,
///     }
/// }
/// ```
///
/// `check = function` behind the struct names a `fn(&Self, &mut Faults)` for what concerns several
/// fields.
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $text:literal])+
        $(#[derive($($derive:path),* $(,)?)])?
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $(#[setting($($option:tt)*)])?
                pub $field:ident : $type:ty $(= $default:expr)?
            ),* $(,)?
        }
        $(check = $check:path;)?
    ) => {
        $(#[doc = $text])+
        $(#[derive($($derive),*)])?
        pub struct $name {
            $(
                $(#[doc = $doc])*
                #[doc = $crate::settings!(@default_text [$($($option)*)?] $type $(, $default)?)]
                pub $field: $type,
            )*
        }

        impl ::core::default::Default for $name {
            fn default() -> Self {
                Self { $($field: $crate::settings!(@default [$($($option)*)?] $field $(, $default)?),)* }
            }
        }

        impl $crate::Settings for $name {
            const TEXT: &'static str = concat!($($text, "\n"),+);

            fn schema() -> $crate::Schema<Self> {
                #[allow(unused_mut, reason = "a group may have no settings, or no groups")]
                let (mut own, mut groups) = (::std::vec::Vec::new(), ::std::vec::Vec::new());
                $($crate::settings!(
                    @schema [$($($option)*)?] own groups $field $type [$($doc)*] [$($($option)*)?]
                );)*
                $crate::Schema::of(Self::TEXT, own, groups)
            }

            #[allow(unused_variables, reason = "a group may have nothing to check")]
            fn check(&self, faults: &mut $crate::Faults) {
                $($crate::settings!(@checks [$($($option)*)?] self faults $field $type, [$($($option)*)?]);)*
                $($check(self, faults);)?
            }
        }
    };

    // The last line of a field's documentation.
    (@default_text [group $($o:tt)*] $type:ty $(, $default:expr)?) => {
        concat!("\n\nSee [`", stringify!($type), "`].")
    };
    (@default_text [flatten $($o:tt)*] $type:ty $(, $default:expr)?) => {
        concat!("\n\nSee [`", stringify!($type), "`].")
    };
    (@default_text [$($o:tt)*] $type:ty, $default:expr) => {
        concat!("\n\nDefault: `", stringify!($default), "`.")
    };

    (@default [$($o:tt)*] $field:ident, $default:expr) => { $default };
    (@default [group $($o:tt)*] $field:ident) => { ::core::default::Default::default() };
    (@default [flatten $($o:tt)*] $field:ident) => { ::core::default::Default::default() };
    (@default [$($o:tt)*] $field:ident) => {
        compile_error!(concat!("the setting `", stringify!($field), "` has no default"))
    };

    (@schema [derived $($o:tt)*] $own:ident $groups:ident $field:ident $type:ty [$($doc:literal)+] $all:tt) => {};
    (@schema [group $($o:tt)*] $own:ident $groups:ident $field:ident $type:ty [$($doc:literal)*] $all:tt) => {
        $groups.push(<$type as $crate::Settings>::schema().nest(
            stringify!($field),
            $crate::settings!(@text $type, $($doc)*),
            |config: &Self| &config.$field,
            |config: &mut Self| &mut config.$field,
        ));
    };
    (@schema [flatten $($o:tt)*] $own:ident $groups:ident $field:ident $type:ty [$($doc:literal)*] $all:tt) => {
        $own.extend(
            <$type as $crate::Settings>::schema()
                .nest("", "", |config: &Self| &config.$field, |config: &mut Self| &mut config.$field)
                .settings,
        );
    };
    (@schema [$($o:tt)*] $own:ident $groups:ident $field:ident $type:ty [] $all:tt) => {
        compile_error!(concat!("the setting `", stringify!($field), "` has no text: write a doc comment"));
    };
    (@schema [$($o:tt)*] $own:ident $groups:ident $field:ident $type:ty [$($doc:literal)+] $all:tt) => {
        $own.push(
            $crate::Setting::new::<$type, $crate::settings!(@format $($o)*)>(
                stringify!($field),
                concat!($($doc, "\n"),+),
                |config: &Self| &config.$field,
                |config: &mut Self| &mut config.$field,
            )
            .example($crate::settings!(@example $($o)*))
            .secret($crate::settings!(@secret $($o)*)),
        );
    };

    (@text $type:ty,) => { <$type as $crate::Settings>::TEXT };
    (@text $type:ty, $($doc:literal)+) => { concat!($($doc, "\n"),+) };

    (@format) => { $crate::Plain };
    (@format bytes $($o:tt)*) => { $crate::Bytes };
    (@format format = $format:path $(, $($o:tt)*)?) => { $format };
    (@format $skip:tt $($o:tt)*) => { $crate::settings!(@format $($o)*) };

    (@example) => { "" };
    (@example example = $example:literal $($o:tt)*) => { $example };
    (@example $skip:tt $($o:tt)*) => { $crate::settings!(@example $($o)*) };

    (@secret) => { false };
    (@secret secret $($o:tt)*) => { true };
    (@secret $skip:tt $($o:tt)*) => { $crate::settings!(@secret $($o)*) };

    (@checks [group $($o:tt)*] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {
        $faults.group(stringify!($field), &$self.$field);
    };
    (@checks [flatten $($o:tt)*] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {
        $faults.group("", &$self.$field);
    };
    (@checks [above_zero $(, $($o:tt)*)?] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {
        $faults.above_zero(stringify!($field), &$self.$field);
        $crate::settings!(@checks [$($($o)*)?] $self $faults $field $type, $all);
    };
    (@checks [at_least = $min:expr $(, $($o:tt)*)?] $self:ident $faults:ident $field:ident $type:ty, [$($all:tt)*]) => {
        $faults.at_least::<$type, $crate::settings!(@format $($all)*)>(
            stringify!($field),
            &$self.$field,
            &$min,
        );
        $crate::settings!(@checks [$($($o)*)?] $self $faults $field $type, [$($all)*]);
    };
    (@checks [range = $range:expr $(, $($o:tt)*)?] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {
        $faults.within(stringify!($field), &$self.$field, &$range);
        $crate::settings!(@checks [$($($o)*)?] $self $faults $field $type, $all);
    };
    (@checks [check = $check:path $(, $($o:tt)*)?] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {
        $faults.add_error(stringify!($field), $check(&$self.$field));
        $crate::settings!(@checks [$($($o)*)?] $self $faults $field $type, $all);
    };
    (@checks [$skip:tt $($o:tt)*] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {
        $crate::settings!(@checks [$($o)*] $self $faults $field $type, $all);
    };
    (@checks [] $self:ident $faults:ident $field:ident $type:ty, $all:tt) => {};
}
