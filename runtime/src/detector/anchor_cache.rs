//! The anchors of recent input sizes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use models::{Anchors, ModelSpec};

/// Least-recently-used cache of the anchors per input size.
#[derive(Debug, Default)]
pub(super) struct AnchorCache {
    /// Height, width and anchors, most recently used first.
    sizes: Mutex<VecDeque<(usize, usize, Arc<Anchors>)>>,
}

impl AnchorCache {
    /// Maximum number of sizes. Images of any aspect ratio, resized to 608 by at most 1024 and padded to multiples of
    /// 32, have 28 sizes. The anchors of one size take about 2 MB.
    const CAPACITY: usize = 32;

    pub(super) fn get(&self, height: usize, width: usize, spec: &ModelSpec) -> Arc<Anchors> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let position = sizes.iter().position(|(h, w, _)| (*h, *w) == (height, width));
        let entry = position.and_then(|position| sizes.remove(position)).unwrap_or_else(|| {
            let anchors = Anchors::new(&spec.anchors, height, width);
            (height, width, Arc::new(anchors))
        });
        let anchors = Arc::clone(&entry.2);
        sizes.push_front(entry);
        sizes.truncate(Self::CAPACITY);
        anchors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_computed_once_per_size_and_the_cache_is_bounded() {
        let (cache, spec) = (AnchorCache::default(), ModelSpec::default());
        let first = cache.get(32, 64, &spec);
        assert!(Arc::ptr_eq(&first, &cache.get(32, 64, &spec)));
        assert!(!Arc::ptr_eq(&first, &cache.get(64, 32, &spec)));
        for side in 1..=AnchorCache::CAPACITY {
            cache.get(32, 32 * (side + 2), &spec);
        }
        assert_eq!(cache.sizes.lock().unwrap().len(), AnchorCache::CAPACITY);
        assert!(!Arc::ptr_eq(&first, &cache.get(32, 64, &spec)));
    }
}
