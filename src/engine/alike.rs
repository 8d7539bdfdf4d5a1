//! What a new job has in common with those before it is kept once: most jobs have the
//! rules, target, method and caller of their neighbours, and many are wholly like one of
//! the few kinds that an application has; those that run or wait for a slot are kept in
//! memory.

use super::lock;
use crate::job::Spec;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, Weak},
};

/// So many kinds of jobs are remembered.
const KINDS: usize = 64;

/// Jobs before.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// The last of a kind that has this place, while a job has it.
    kinds: [Weak<Spec>; KINDS],
    /// The last of all, and who started it.
    last: Option<(Arc<Spec>, Arc<str>)>,
}

impl Default for Known {
    fn default() -> Self {
        Self { kinds: [const { Weak::new() }; KINDS], last: None }
    }
}

impl Alike {
    /// The same spec and name of a caller, with as much as can be of the jobs before.
    pub(super) fn share(&self, mut spec: Spec, created_by: &str) -> (Arc<Spec>, Arc<str>) {
        let mut known = lock(&self.0);
        let place = place(&spec);
        let same = known.kinds[place].upgrade().filter(|kind| **kind == spec);
        let last = known.last.as_ref();
        let spec = same.unwrap_or_else(|| {
            if let Some((last, _)) = last {
                share(&mut spec.rules, &last.rules);
                share(&mut spec.target, &last.target);
                share(&mut spec.method, &last.method);
            }
            let route = Arc::clone(&spec.route);
            share(&mut spec.url, &route);
            Arc::new(spec)
        });
        let caller = last.filter(|(_, caller)| **caller == *created_by).map(|(_, caller)| Arc::clone(caller));
        let caller = caller.unwrap_or_else(|| created_by.into());
        known.kinds[place] = Arc::downgrade(&spec);
        known.last = Some((Arc::clone(&spec), Arc::clone(&caller)));
        (spec, caller)
    }
}

/// By what most likely tells two kinds apart.
fn place(spec: &Spec) -> usize {
    let mut hasher = DefaultHasher::new();
    (&spec.target, &spec.url, &spec.labels).hash(&mut hasher);
    hasher.finish() as usize % KINDS
}

fn share<T: PartialEq + ?Sized>(mine: &mut Arc<T>, known: &Arc<T>) {
    if **mine == **known {
        *mine = Arc::clone(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Rules;

    fn spec(target: &str, url: &str, max_attempts: u32) -> Spec {
        let rules = Arc::new(Rules { max_attempts, ..Rules::plain() });
        Spec { target: target.into(), route: url.into(), url: url.into(), ..Spec::plain(rules) }
    }

    #[test]
    fn neighbours_share_what_is_equal_and_nothing_else() {
        let alike = Alike::default();
        let (one, caller) = alike.share(spec("a", "/1", 1), "me");
        let (two, same) = alike.share(spec("a", "/2", 1), "me");
        assert_eq!(*two, spec("a", "/2", 1));
        assert!(Arc::ptr_eq(&one.rules, &two.rules) && Arc::ptr_eq(&one.target, &two.target));
        assert!(Arc::ptr_eq(&two.route, &two.url), "a route without more is the whole url");
        assert!(Arc::ptr_eq(&caller, &same) && !Arc::ptr_eq(&one, &two));
        let (three, other) = alike.share(spec("b", "/2", 2), "you");
        assert_eq!((&*three, &*other), (&spec("b", "/2", 2), "you"));
        assert!(Arc::ptr_eq(&two.method, &three.method) && !Arc::ptr_eq(&two.rules, &three.rules));
        let (four, _) = alike.share(spec("b", "/2", 2), "you");
        assert!(Arc::ptr_eq(&three, &four), "wholly alike");
        let (five, _) = alike.share(spec("a", "/2", 1), "me");
        assert!(Arc::ptr_eq(&two, &five), "like one that was not the last");
        drop((two, five));
        alike.share(spec("b", "/2", 2), "me");
        assert!(lock(&alike.0).kinds[place(&spec("a", "/2", 1))].upgrade().is_none(), "no job has it");
    }
}
