//! What a new job has in common with the one before it is kept once: nearly all jobs
//! have the rules, target, method and caller of their neighbours, and those that run
//! or wait for a slot are kept in memory.

use super::lock;
use crate::job::Spec;
use std::sync::{Arc, Mutex};

/// The job before.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<Option<(Arc<Spec>, Arc<str>)>>);

impl Alike {
    /// The same spec and name of a caller, with as much as can be of the job before.
    pub(super) fn share(&self, mut spec: Spec, created_by: &str) -> (Arc<Spec>, Arc<str>) {
        let mut before = lock(&self.0);
        let (spec, created_by) = match &*before {
            None => (Arc::new(spec), created_by.into()),
            Some((known, caller)) => {
                share(&mut spec.rules, &known.rules);
                share(&mut spec.target, &known.target);
                share(&mut spec.method, &known.method);
                let spec = if **known == spec { Arc::clone(known) } else { Arc::new(spec) };
                (spec, if **caller == *created_by { Arc::clone(caller) } else { created_by.into() })
            }
        };
        *before = Some((Arc::clone(&spec), Arc::clone(&created_by)));
        (spec, created_by)
    }
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
        assert!(Arc::ptr_eq(&caller, &same) && !Arc::ptr_eq(&one, &two));
        let (three, other) = alike.share(spec("b", "/2", 2), "you");
        assert_eq!((&*three, &*other), (&spec("b", "/2", 2), "you"));
        assert!(Arc::ptr_eq(&two.method, &three.method) && !Arc::ptr_eq(&two.rules, &three.rules));
        let (four, _) = alike.share(spec("b", "/2", 2), "you");
        assert!(Arc::ptr_eq(&three, &four), "wholly alike");
    }
}
