//! The callers' tokens: who may call JobControl, and what they may do.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

/// What every token that is made here begins with, so that a search for leaked
/// secrets finds it.
const PREFIX: &str = "backjob_";
/// Tokens of one file, at most: each call looks at all of them.
const MOST: usize = 1_000;
/// Bytes of a name, at most.
const NAME: usize = 64;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read and watch.
    Viewer,
    /// Also start, cancel, retry and delete.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            _ => Err("must be viewer or operator".to_owned()),
        }
    }
}

/// Who calls.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's name.
    pub name: Arc<str>,
    /// What they may do.
    pub role: Role,
    /// SHA-256 of the token: one name may have several, and each is taken away by
    /// itself.
    token: [u8; 32],
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

/// Why a file of tokens is refused; never holds what stands in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCallers {
    /// Not in the form of a line.
    #[error("line {0}: NAME ROLE SHA256 is expected: {1}")]
    Line(usize, &'static str),
    /// One name has both roles.
    #[error("line {0}: the name has another role on an earlier line")]
    TwoRoles(usize),
    /// One token stands twice.
    #[error("line {0}: the same token is on an earlier line")]
    Twice(usize),
    /// More than can be looked at on each call.
    #[error("more than {MOST} tokens")]
    TooMany,
}

/// The tokens that are known: of each its SHA-256 alone. A name may have several,
/// so that a token can be replaced without a gap.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Callers {
    known: Vec<Caller>,
}

impl Callers {
    /// One token on a line: its name (1 to 64 of letters, digits, `_`, `-` and
    /// `.`), its role and the SHA-256 of its text in hexadecimal. Empty lines and
    /// lines with `#` are passed over.
    ///
    /// # Errors
    /// See [`BadCallers`].
    pub fn parse(text: &str) -> Result<Self, BadCallers> {
        let mut known: Vec<Caller> = Vec::new();
        let mut roles: BTreeMap<&str, Role> = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            let (Some(name), Some(role), Some(hash), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(BadCallers::Line(number, "three words"));
            };
            if !is_name(name) {
                return Err(BadCallers::Line(number, "a name is 1 to 64 of letters, digits, _, - and ."));
            }
            let role = role.parse().map_err(|_| BadCallers::Line(number, "a role is viewer or operator"))?;
            let token =
                from_hex(hash).ok_or(BadCallers::Line(number, "a SHA-256 is 64 hexadecimal digits"))?;
            if *roles.entry(name).or_insert(role) != role {
                return Err(BadCallers::TwoRoles(number));
            }
            if known.iter().any(|other| other.token == token) {
                return Err(BadCallers::Twice(number));
            }
            if known.len() == MOST {
                return Err(BadCallers::TooMany);
            }
            known.push(Caller { name: name.into(), role, token });
        }
        Ok(Self { known })
    }

    /// Whose token this is. It takes the same time whichever it is, and whether it
    /// is one.
    pub fn find(&self, token: &str) -> Option<&Caller> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let (mut found, mut place) = (Choice::from(0), 0_u32);
        for (index, known) in self.known.iter().enumerate() {
            let same = known.token.ct_eq(&hash);
            place = u32::conditional_select(&place, &u32::try_from(index).unwrap_or(0), same);
            found |= same;
        }
        bool::from(found).then(|| self.known.get(place as usize)).flatten()
    }

    /// Whether the token that `caller` came with is still there, under the same name
    /// and role.
    pub fn knows(&self, caller: &Caller) -> bool {
        self.known.contains(caller)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.known).finish()
    }
}

/// A token drawn at random: 51 characters, of which 43 hold 256 bits.
///
/// # Errors
/// If the system has no randomness.
pub fn new_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// The line of a file that makes `token` known; None if the name is none.
pub fn token_line(name: &str, role: Role, token: &str) -> Option<String> {
    let hash: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    is_name(name).then(|| format!("{name} {role} {hash}"))
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=NAME).contains(&name.len()) && name.chars().all(fits)
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, role: Role, token: &str) -> String {
        token_line(name, role, token).expect("a name")
    }

    #[test]
    fn each_token_is_found_and_no_other() {
        let text = format!(
            "# callers\n\n{}\n{}\n  {}\n",
            line("app", Role::Operator, "one"),
            line("dash", Role::Viewer, "two"),
            line("app", Role::Operator, "three"),
        );
        let callers = Callers::parse(&text).expect("a file");
        let found = |token| callers.find(token).map(|caller| (&*caller.name, caller.role));
        assert_eq!(found("one"), Some(("app", Role::Operator)));
        assert_eq!(found("two"), Some(("dash", Role::Viewer)));
        assert_eq!(found("three"), Some(("app", Role::Operator)));
        for token in ["", "four", "one ", "ONE", &text] {
            assert_eq!(found(token), None, "{token}");
        }
        assert!(Callers::default().find("").is_none());
        assert!(Callers::default().is_empty() && callers.len() == 3);
        assert!(!format!("{callers:?}").contains("one"));
    }

    #[test]
    fn a_token_is_taken_away_by_itself() {
        let three = [
            line("app", Role::Operator, "one"),
            line("app", Role::Operator, "two"),
            line("dash", Role::Viewer, "three"),
        ];
        let callers = Callers::parse(&three.join("\n")).expect("a file");
        let caller = |token| callers.find(token).expect("known");
        let fewer = Callers::parse(&three[1..].join("\n")).expect("a file");
        // The name lives on with its other token; who came with the one that is gone does not.
        assert!(!fewer.knows(caller("one")) && fewer.knows(caller("two")) && fewer.knows(caller("three")));
        let other = Callers::parse(&line("dash", Role::Operator, "three")).expect("a file");
        assert!(!other.knows(caller("three")), "with another role it is another caller");
    }

    #[test]
    fn a_file_that_is_not_one_names_its_line() {
        let good = line("app", Role::Operator, "one");
        for (bad, number) in [
            ("app operator", 2),
            ("app operator x", 2),
            (&*format!("{good} more"), 2),
            (&*good.replace("operator", "root"), 2),
            (&*good.replace("app", "a/b"), 2),
            (&*good.replace("app", &"a".repeat(65)), 2),
            (&*good, 2),
            (&*line("app", Role::Viewer, "two"), 2),
        ] {
            let error = Callers::parse(&format!("{good}\n{bad}\n")).expect_err(bad).to_string();
            assert!(error.starts_with(&format!("line {number}: ")), "{bad}: {error}");
        }
        let many: String = (0..=MOST).map(|i| line("app", Role::Viewer, &i.to_string()) + "\n").collect();
        assert_eq!(Callers::parse(&many), Err(BadCallers::TooMany));
    }

    #[test]
    fn new_tokens_are_long_and_never_the_same() {
        let (one, two) = (new_token().expect("random"), new_token().expect("random"));
        assert!(one != two && one.len() == 51 && one.starts_with(PREFIX));
    }
}
