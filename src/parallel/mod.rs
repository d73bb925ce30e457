//! The same for several things, a few at once.

mod crew;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::diag::{Diagnostic, Result};

pub use self::crew::{Crew, Job, buffer_bytes};

/// For what waits rather than works: transfers.
pub const TRANSFERS: usize = 4;

/// How many threads can work at once. Read once: the standard library looks through control groups for it.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Does `work` for each item, on at most so many threads. After an error nothing more begins; of several
/// errors the one of the lowest item is returned.
pub fn each<T: Sync>(items: &[T], threads: usize, work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
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
    match threads.min(items.len()) {
        0 | 1 => thread(),
        threads => std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(thread)))),
    }
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// The same, with results in the order of the items.
pub fn map<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let places: Vec<_> = items.iter().map(|item| (item, Mutex::new(None))).collect();
    each(&places, threads, |(item, place)| {
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(work(item)?);
        Ok(())
    })?;
    Ok(places.into_iter().filter_map(|(_, place)| place.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
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
        each(&items, 4, |_| {
            done.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), 100);
        let error = each(&items[..1], 4, |item| Err(Diagnostic::error(item.to_string()))).unwrap_err();
        assert_eq!(error.message, "0");
        assert!(each(&items[..0], 4, |_| Err(Diagnostic::error("never"))).is_ok());
    }
}
