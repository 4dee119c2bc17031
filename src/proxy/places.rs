//! `max-connections`: how many connections there may be at a time, over all workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// Who waits for a place waits in the kernel's queue, but for one of each worker.
#[derive(Debug)]
pub struct Places {
    free: Semaphore,
    size: Mutex<Size>,
}

#[derive(Debug)]
struct Size {
    places: usize,
    /// So many of those that are taken are not to be had again.
    surplus: usize,
}

/// A connection's right to be there. Dropped, it is free for another one.
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Places {
    /// For `most` connections; 0 is as many as there are descriptors for.
    pub fn new(most: usize) -> Arc<Places> {
        let places = number(most);
        Arc::new(Places {
            free: Semaphore::new(places),
            size: Mutex::new(Size { places, surplus: 0 }),
        })
    }

    /// Another number of them. Where there are more connections than that, they stay, and no other comes for as
    /// long.
    pub fn resize(&self, most: usize) {
        let wanted = number(most);
        let mut size = self.size();
        if wanted > size.places {
            let more = wanted - size.places;
            let kept = more.min(size.surplus);
            size.surplus -= kept;
            self.free.add_permits(more - kept);
        } else {
            let fewer = size.places - wanted;
            size.surplus += fewer - self.free.forget_permits(fewer);
        }
        size.places = wanted;
    }

    /// Waits for a place.
    pub async fn one(self: &Arc<Places>) -> Option<Place> {
        // Nobody closes it.
        self.free.acquire().await.ok()?.forget();
        Some(Place(Arc::clone(self)))
    }

    fn size(&self) -> MutexGuard<'_, Size> {
        // Nothing panics while it is held.
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut size = self.0.size();
        match size.surplus {
            0 => self.0.free.add_permits(1),
            _ => size.surplus -= 1,
        }
    }
}

fn number(most: usize) -> usize {
    match most {
        0 => Semaphore::MAX_PERMITS,
        most => most,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn take(places: &Arc<Places>) -> Option<Place> {
        let mut cx = Context::from_waker(Waker::noop());
        match pin!(places.one()).poll(&mut cx) {
            Poll::Ready(place) => place,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_is_gone() {
        let places = Places::new(1);
        let taken = take(&places).unwrap();
        assert!(take(&places).is_none());
        drop(taken);
        assert!(take(&places).is_some());
    }

    #[test]
    fn connections_that_are_too_many_stay_and_no_other_comes_before_enough_of_them_have_gone() {
        let places = Places::new(0);
        let mut taken: Vec<_> = (0..5).map(|_| take(&places).unwrap()).collect();
        places.resize(3);
        assert!(take(&places).is_none());
        taken.truncate(3);
        assert!(take(&places).is_none());
        taken.truncate(2);
        taken.push(take(&places).unwrap());
        places.resize(1);
        places.resize(4);
        taken.push(take(&places).unwrap());
        assert!(take(&places).is_none());
        places.resize(0);
        taken.extend((0..100).map(|_| take(&places).unwrap()));
        places.resize(3);
        taken.clear();
        let again: Vec<_> = (0..4).filter_map(|_| take(&places)).collect();
        assert_eq!(again.len(), 3);
    }
}
