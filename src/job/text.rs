//! The text that an action writes: the last 64 KiB of it, and how much there
//! was before.

/// How many bytes of text are kept.
pub const KEPT: usize = 64 * 1024;

/// How far a reader has read a [`Text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    replaced_at: u64,
    written: u64,
}

/// Status text of one attempt. Every change moves `written` on, so that a
/// reader who knows where it stopped can be given just the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(Option<Box<Written>>);

/// What there is once something was written: most running jobs have nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Written {
    kept: String,
    written: u64,
    replaced_at: u64,
    truncated: bool,
}

/// What a text is that nothing was written to.
static NOTHING: Written = Written { kept: String::new(), written: 0, replaced_at: 0, truncated: false };

impl Text {
    /// A text as it was stored: what was kept, and how many bytes were ever
    /// written.
    pub fn restored(kept: String, written: u64, truncated: bool) -> Self {
        let written = written.max(kept.len() as u64);
        if written == 0 {
            return Self::default();
        }
        let replaced_at = written - kept.len() as u64;
        Self(Some(Box::new(Written { kept, written, replaced_at, truncated })))
    }

    fn inner(&self) -> &Written {
        self.0.as_deref().unwrap_or(&NOTHING)
    }

    /// The kept text.
    pub fn as_str(&self) -> &str {
        &self.inner().kept
    }

    /// Bytes ever written in this attempt, replacements included.
    pub fn written(&self) -> u64 {
        self.inner().written
    }

    /// Where the text began after its last replacement, in bytes ever written.
    pub fn replaced_at(&self) -> u64 {
        self.inner().replaced_at
    }

    /// Where the kept text begins, in bytes ever written.
    pub fn kept_from(&self) -> u64 {
        self.inner().kept_from()
    }

    /// Whether text before the kept one was dropped since the last replacement.
    pub fn truncated(&self) -> bool {
        self.inner().truncated
    }

    /// Adds to the text.
    pub fn append(&mut self, more: &str) {
        if !more.is_empty() {
            self.0.get_or_insert_default().append(more);
        }
    }

    /// Puts another text in its place.
    pub fn replace(&mut self, text: &str) {
        if let Some(written) = &mut self.0 {
            written.clear();
        }
        self.append(text);
    }

    /// Where a reader stands who has been given all of this text.
    pub fn cursor(&self) -> Cursor {
        let Written { replaced_at, written, .. } = *self.inner();
        Cursor { replaced_at, written }
    }

    /// What a reader lacks who stands at `seen`: where the piece begins, the
    /// piece, and whether the reader must forget what it has.
    pub fn since(&self, seen: Option<Cursor>) -> (u64, &str, bool) {
        let all = (self.kept_from(), self.as_str(), true);
        match seen {
            // Where text was dropped after the last replacement, a reader who stands in
            // what is kept has read on since that.
            Some(Cursor { replaced_at, written: at })
                if (replaced_at == self.replaced_at() || self.truncated()) && at >= self.kept_from() =>
            {
                let from = usize::try_from(at - self.kept_from()).ok();
                from.and_then(|from| self.as_str().get(from..)).map_or(all, |piece| (at, piece, false))
            }
            _ => all,
        }
    }
}

impl Written {
    fn kept_from(&self) -> u64 {
        self.written - self.kept.len() as u64
    }

    fn append(&mut self, more: &str) {
        self.written += more.len() as u64;
        if more.len() >= KEPT {
            self.kept.clear();
            self.kept.push_str(tail(more));
            self.truncated |= self.kept_from() > self.replaced_at;
            return;
        }
        let over = (self.kept.len() + more.len()).saturating_sub(KEPT);
        if over > 0 {
            let cut = self.kept.ceil_char_boundary(over);
            self.kept.drain(..cut);
            self.truncated = true;
        }
        self.kept.push_str(more);
    }

    fn clear(&mut self) {
        self.replaced_at = self.written;
        self.truncated = false;
        self.kept.clear();
    }
}

/// The last [`KEPT`] bytes, cut at a character.
fn tail(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(KEPT))..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_text_keeps_its_tail_and_says_so() {
        let mut text = Text::default();
        text.append(&"é".repeat(KEPT));
        assert_eq!(text.as_str().len(), KEPT);
        assert!(text.truncated());
        text.replace("short");
        assert_eq!((text.as_str(), text.truncated()), ("short", false));
    }

    #[test]
    fn a_replacement_resets_a_reader() {
        let mut text = Text::default();
        text.append("one");
        let seen = text.cursor();
        text.replace("two");
        assert_eq!(text.since(Some(seen)), (3, "two", true));
        let seen = text.cursor();
        text.append("!");
        assert_eq!(text.since(Some(seen)), (6, "!", false));
    }

    #[test]
    fn a_stored_text_that_lost_its_beginning_is_read_on_without_a_reset() {
        let stored = |text: &Text| Text::restored(text.as_str().to_owned(), text.written(), text.truncated());
        let mut text = Text::default();
        text.append(&"a".repeat(KEPT + 10));
        let seen = stored(&text).cursor();
        text.append("more");
        assert_eq!(stored(&text).since(Some(seen)), (KEPT as u64 + 10, "more", false));
        text.replace(&"b".repeat(KEPT + 10));
        assert!(stored(&text).since(Some(seen)).2, "another text");
    }

    proptest! {
        #[test]
        fn pieces_joined_are_exactly_the_text(
            stored in any::<bool>(),
            ops in prop::collection::vec((0..8u8, any::<char>(), 0..30_000usize), 1..24),
        ) {
            let mut text = Text::default();
            let mut expected = String::new();
            let mut joined = String::new();
            let mut seen = None;
            for (kind, character, times) in ops {
                let piece = character.to_string().repeat(times);
                if kind == 0 {
                    text.replace(&piece);
                    expected = piece;
                } else {
                    text.append(&piece);
                    expected.push_str(&piece);
                }
                // On another node it is as it was stored.
                let shown = match stored {
                    true => Text::restored(text.as_str().to_owned(), text.written(), text.truncated()),
                    false => text.clone(),
                };
                let (from, rest, reset) = shown.since(seen);
                if reset {
                    joined.clear();
                }
                prop_assert_eq!(from + rest.len() as u64, text.written());
                joined.push_str(rest);
                seen = Some(shown.cursor());
                prop_assert!(text.as_str().len() <= KEPT);
                prop_assert!(joined.ends_with(text.as_str()));
                prop_assert!(expected.ends_with(text.as_str()));
                prop_assert_eq!(text.truncated(), text.as_str().len() < expected.len());
            }
        }
    }
}
