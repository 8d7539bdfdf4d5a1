//! Values of settings, as a file or a text gives them.

use ipnet::IpNet;
use std::{fmt, net::IpAddr, net::SocketAddr, ops::Deref, path::PathBuf, str::FromStr, time::Duration};

/// What a source gives for one setting.
#[derive(Clone)]
pub(super) enum Given {
    /// Typed, out of a file.
    Toml(toml::Value),
    /// Out of a variable or a flag, where all is text.
    Text(String),
}

impl Given {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Toml(value) => value.as_str(),
            Self::Text(text) => Some(text.trim()),
        }
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Self::Toml(value) => value.as_integer(),
            Self::Text(text) => text.trim().parse().ok(),
        }
    }

    /// Items of a list; a text separates them by commas.
    fn items(&self) -> Option<Vec<String>> {
        match self {
            Self::Toml(value) => {
                value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
            }
            Self::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(items.map(str::to_owned).collect())
            }
        }
    }

    fn parse<T: FromStr>(&self) -> Option<T> {
        self.text()?.parse().ok()
    }
}

/// A type that settings have. An error says what is expected and never repeats
/// what was given: that may be secret.
pub(super) trait Setting: Sized {
    fn read(given: &Given) -> Result<Self, String>;

    /// As a value of TOML that reads as the same; secrets are redacted.
    fn show(&self) -> String;
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn listed(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.map(|item| quoted(&item)).collect::<Vec<_>>().join(", "))
}

impl Setting for bool {
    fn read(given: &Given) -> Result<Self, String> {
        let read = match given {
            Given::Toml(value) => value.as_bool(),
            Given::Text(text) => match text.trim() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            },
        };
        read.ok_or_else(|| "must be true or false".into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_number {
    ($($number:ty),*) => {$(
        impl Setting for $number {
            fn read(given: &Given) -> Result<Self, String> {
                let number = given.integer().and_then(|number| number.try_into().ok());
                number.ok_or_else(|| "must be a whole number, not negative".into())
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole_number!(u32, u64, usize);

impl Setting for String {
    fn read(given: &Given) -> Result<Self, String> {
        given.text().map(str::to_owned).ok_or_else(|| "must be a text".into())
    }

    fn show(&self) -> String {
        quoted(self)
    }
}

impl Setting for Option<String> {
    fn read(given: &Given) -> Result<Self, String> {
        String::read(given).map(|text| Some(text).filter(|text| !text.is_empty()))
    }

    fn show(&self) -> String {
        quoted(self.as_deref().unwrap_or_default())
    }
}

impl Setting for Option<PathBuf> {
    fn read(given: &Given) -> Result<Self, String> {
        Option::<String>::read(given).map(|path| path.map(PathBuf::from))
    }

    fn show(&self) -> String {
        quoted(&self.as_ref().map(|path| path.display().to_string()).unwrap_or_default())
    }
}

impl Setting for SocketAddr {
    fn read(given: &Given) -> Result<Self, String> {
        given.parse().ok_or_else(|| "must be an address and a port, like \"127.0.0.1:50051\"".into())
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// An empty text is none.
impl Setting for Option<SocketAddr> {
    fn read(given: &Given) -> Result<Self, String> {
        match given.text() {
            Some("") => Ok(None),
            _ => SocketAddr::read(given).map(Some),
        }
    }

    fn show(&self) -> String {
        quoted(&self.map(|address| address.to_string()).unwrap_or_default())
    }
}

impl Setting for Vec<String> {
    fn read(given: &Given) -> Result<Self, String> {
        given.items().ok_or_else(|| "must be a list of texts".into())
    }

    fn show(&self) -> String {
        listed(self.iter().cloned())
    }
}

impl Setting for Vec<Secret> {
    fn read(given: &Given) -> Result<Self, String> {
        let items = given.items().ok_or("must be a list of texts")?;
        Ok(items.into_iter().map(Secret).collect())
    }

    fn show(&self) -> String {
        listed(self.iter().map(|_| "(redacted)".to_owned()))
    }
}

impl Setting for Vec<IpNet> {
    fn read(given: &Given) -> Result<Self, String> {
        let net = |item: &String| -> Option<IpNet> {
            item.parse().ok().or_else(|| item.parse::<IpAddr>().ok().map(IpNet::from))
        };
        let nets = given.items().and_then(|items| items.iter().map(net).collect());
        nets.ok_or_else(|| "must be a list of networks, like [\"10.0.0.0/8\"]".into())
    }

    fn show(&self) -> String {
        listed(self.iter().map(IpNet::to_string))
    }
}

impl Setting for Duration {
    fn read(given: &Given) -> Result<Self, String> {
        let read = match given.integer() {
            Some(seconds) => seconds.try_into().ok().map(Self::from_secs),
            None => given.text().and_then(span),
        };
        // What is stored and compared are signed milliseconds.
        let read = read.filter(|span| i64::try_from(span.as_millis()).is_ok());
        read.ok_or_else(|| {
            "must be a span like \"500ms\", \"60s\", \"10m\", \"1h\", \"30d\", or whole seconds".into()
        })
    }

    fn show(&self) -> String {
        let millis = self.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
        let fits = units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit));
        fits.map_or_else(|| "0".to_owned(), |(unit, name)| quoted(&format!("{}{name}", millis / unit)))
    }
}

/// Zero is none.
impl Setting for Option<Duration> {
    fn read(given: &Given) -> Result<Self, String> {
        Duration::read(given).map(|span| Some(span).filter(|span| !span.is_zero()))
    }

    fn show(&self) -> String {
        self.unwrap_or_default().show()
    }
}

fn span(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Setting for Size {
    fn read(given: &Given) -> Result<Self, String> {
        let read = match given.integer() {
            Some(bytes) => u64::try_from(bytes).ok(),
            None => given.text().and_then(size),
        };
        read.map(Self)
            .ok_or_else(|| "must be a size like \"64KiB\", \"16MiB\", \"1GiB\", or whole bytes".into())
    }

    fn show(&self) -> String {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];
        let fits = units.into_iter().find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit));
        fits.map_or_else(|| "0".to_owned(), |(unit, name)| quoted(&format!("{}{name}", self.0 / unit)))
    }
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// A text that is never printed: its `Debug` is redacted, and it has no
/// `Display`. It reads as `&str` by dereferencing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl Setting for Secret {
    fn read(given: &Given) -> Result<Self, String> {
        String::read(given).map(Self)
    }

    /// A URL is shown without what stands before its host.
    fn show(&self) -> String {
        match self.0.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
            Some((scheme, Some((_, rest)))) => quoted(&format!("{scheme}://(redacted)@{rest}")),
            _ => quoted(&self.0),
        }
    }
}

/// Which earlier identical job a Start may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergePolicy {
    /// One that waits and has not begun.
    JoinPending,
    /// One that has not ended.
    JoinActive,
    /// None: it is refused while one has not ended.
    Reject,
    /// None.
    Never,
}

impl Setting for MergePolicy {
    fn read(given: &Given) -> Result<Self, String> {
        match given.text() {
            Some("join_pending") => Ok(Self::JoinPending),
            Some("join_active") => Ok(Self::JoinActive),
            Some("reject") => Ok(Self::Reject),
            Some("never") => Ok(Self::Never),
            _ => Err("must be \"join_pending\", \"join_active\", \"reject\" or \"never\"".into()),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::JoinPending => "join_pending",
            Self::JoinActive => "join_active",
            Self::Reject => "reject",
            Self::Never => "never",
        })
    }
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So often, at least 1,
    pub count: u64,
    /// in this time.
    pub per: Duration,
}

/// An empty text is none.
impl Setting for Option<Rate> {
    fn read(given: &Given) -> Result<Self, String> {
        const EXPECTED: &str = "must be a rate like \"10/s\", \"100/m\", \"1000/h\", or empty for none";
        let text = given.text().ok_or(EXPECTED)?;
        if text.is_empty() {
            return Ok(None);
        }
        let (count, unit) = text.split_once('/').ok_or(EXPECTED)?;
        let per = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            _ => return Err(EXPECTED.into()),
        };
        let count =
            count.trim().parse().ok().filter(|count| (1..=1_000_000).contains(count)).ok_or(EXPECTED)?;
        Ok(Some(Rate { count, per: Duration::from_secs(per) }))
    }

    fn show(&self) -> String {
        let unit = |per: Duration| match per.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        quoted(&self.map(|rate| format!("{}/{}", rate.count, unit(rate.per))).unwrap_or_default())
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Setting for LogFormat {
    fn read(given: &Given) -> Result<Self, String> {
        match given.text() {
            Some("human") => Ok(Self::Human),
            Some("json") => Ok(Self::Json),
            _ => Err("must be \"human\" or \"json\"".into()),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: Setting>(text: &str) -> Option<T> {
        T::read(&Given::Text(text.into())).ok()
    }

    fn toml<T: Setting>(value: impl Into<toml::Value>) -> Option<T> {
        T::read(&Given::Toml(value.into())).ok()
    }

    #[test]
    fn spans_read_with_a_unit_or_as_seconds() {
        for (given, millis) in [
            ("500ms", 500),
            ("60s", 60_000),
            ("10 m", 600_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            ("7", 7_000),
        ] {
            assert_eq!(text(given), Some(Duration::from_millis(millis)), "{given}");
        }
        assert_eq!(toml(60), Some(Duration::from_secs(60)));
        assert_eq!(toml("60s"), Some(Duration::from_secs(60)));
        for given in
            ["", "s", "1.5s", "-1s", "-1", "1w", "1h30m", "18446744073709551615d", "18446744073709551615ms"]
        {
            assert_eq!(text::<Duration>(given), None, "{given}");
        }
        assert_eq!(text(" 0 "), Some(None::<Duration>));
    }

    #[test]
    fn sizes_read_with_a_binary_unit_or_as_bytes() {
        assert_eq!((text("16MiB"), text("1 GiB")), (Some(Size(16 << 20)), Some(Size(1 << 30))));
        assert_eq!((text("64KiB"), text("9B"), toml(9)), (Some(Size(65_536)), Some(Size(9)), Some(Size(9))));
        for given in ["16MB", "MiB", "-1", "17179869184GiB"] {
            assert_eq!(text::<Size>(given), None, "{given}");
        }
    }

    #[test]
    fn a_text_source_gives_every_type_and_a_file_only_its_own() {
        assert_eq!(
            [text("1"), text("false"), toml(true), toml("true")],
            [Some(true), Some(false), Some(true), None]
        );
        assert_eq!([text("7"), toml(7), toml("7"), text("-7")], [Some(7_u32), Some(7), None, None]);
        assert_eq!(text("a, b,"), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(text(""), Some(Vec::<String>::new()));
        assert_eq!(toml::<Vec<String>>("a"), None);
        assert_eq!(text(""), Some(None::<String>));
        assert_eq!(text("[::1]:1"), Some(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 1))));
        assert_eq!(text("localhost:1"), None::<SocketAddr>);
        assert_eq!((text("json"), text::<LogFormat>("xml")), (Some(LogFormat::Json), None));
    }

    #[test]
    fn networks_and_single_addresses_are_allowed() {
        let nets: Vec<IpNet> = text("10.0.0.0/8, ::1").expect("networks");
        assert_eq!(nets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "::1/128"]);
        assert_eq!(text::<Vec<IpNet>>("10.0.0.0/33"), None);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::from("canary")), "(redacted)");
    }
}
