//! Several transfers at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::diag::{Diagnostic, Result};

const THREADS: usize = 4;

/// Does `work` for each item, a few at once. After an error nothing more begins; of several errors the
/// one of the lowest item is returned.
pub(super) fn each<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None::<(usize, Diagnostic)>);
    let thread = || {
        while let Some((index, item)) = take(&next, items) {
            if let Err(error) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(other, _)| index < *other) {
                    *failed = Some((index, error));
                }
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS.min(items.len())).for_each(|_| drop(scope.spawn(thread))));
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

fn take<'a, T>(next: &AtomicUsize, items: &'a [T]) -> Option<(usize, &'a T)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    items.get(index).map(|item| (index, item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_error_is_told() {
        let items: Vec<usize> = (0..100).collect();
        let done = AtomicUsize::new(0);
        each(&items, |_| {
            done.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), 100);
        let error = each(&items[..1], |item| Err(Diagnostic::error(item.to_string()))).unwrap_err();
        assert_eq!(error.message, "0");
        assert!(each(&items[..0], |_| Err(Diagnostic::error("never"))).is_ok());
    }
}
