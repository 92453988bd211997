//! A tree over positions that answers in O(log n) what a walk of the list finds in O(n).

/// What a stretch of positions comes to.
pub(crate) trait Summary: Copy + Eq {
    /// That of no destination at all.
    const EMPTY: Self;

    /// That of two stretches side by side. Associative and commutative.
    fn merge(self, other: Self) -> Self;
}

/// The greatest value; 0 for none.
impl Summary for u32 {
    const EMPTY: Self = 0;

    #[inline]
    fn merge(self, other: Self) -> Self {
        self.max(other)
    }
}

/// A binary tree whose leaves are positions and whose inner nodes merge their two children. Node 1 is the root; node
/// `leaves + p` is position `p`. A leaf above all positions in use is empty.
#[derive(Clone, Debug)]
pub(crate) struct Tree<T> {
    nodes: Vec<T>,
    leaves: usize,
}

impl<T: Summary> Default for Tree<T> {
    fn default() -> Self {
        Tree::new([].into_iter())
    }
}

impl<T: Summary> Tree<T> {
    /// From the value of each position.
    pub(crate) fn new(values: impl ExactSizeIterator<Item = T>) -> Self {
        let leaves = values.len().next_power_of_two();
        let mut nodes = vec![T::EMPTY; 2 * leaves];
        for (leaf, value) in nodes[leaves..].iter_mut().zip(values) {
            *leaf = value;
        }
        for node in (1..leaves).rev() {
            nodes[node] = nodes[2 * node].merge(nodes[2 * node + 1]);
        }
        Tree { nodes, leaves }
    }

    /// What all positions come to.
    #[inline]
    pub(crate) fn all(&self) -> T {
        self.nodes[1]
    }

    /// Sets a position's value. A position beyond the last makes the tree grow, by doubling.
    #[inline]
    pub(crate) fn set(&mut self, position: usize, value: T) {
        if position >= self.leaves {
            self.grow(position + 1);
        }
        let mut node = self.leaves + position;
        let mut merged = value;
        while self.nodes[node] != merged {
            self.nodes[node] = merged;
            if node == 1 {
                break;
            }
            merged = merged.merge(self.nodes[node ^ 1]);
            node /= 2;
        }
    }

    #[cold]
    fn grow(&mut self, positions: usize) {
        let mut values = self.nodes[self.leaves..].to_vec();
        values.resize(positions.max(2 * self.leaves), T::EMPTY);
        *self = Tree::new(values.into_iter());
    }

    /// The greatest position below `end` whose value is `wanted`, which must hold for a stretch exactly when it holds
    /// for one of its positions. In list terms: the first one after the destination at `end`.
    #[inline]
    pub(crate) fn last_below(&self, end: usize, wanted: impl Fn(T) -> bool) -> Option<usize> {
        if end >= self.leaves {
            return wanted(self.all()).then(|| self.descend(1, wanted));
        }
        let mut node = self.leaves + end;
        while node > 1 {
            if node % 2 == 1 && wanted(self.nodes[node - 1]) {
                return Some(self.descend(node - 1, wanted));
            }
            node /= 2;
        }
        None
    }

    /// The position that a walk from the last one on stops at, which asks of one stretch after the other whether to stop within.
    pub(crate) fn last_after(&self, mut within: impl FnMut(T) -> bool) -> Option<usize> {
        if !within(self.all()) {
            return None;
        }
        let mut node = 1;
        while node < self.leaves {
            node = 2 * node + usize::from(within(self.nodes[2 * node + 1]));
        }
        Some(node - self.leaves)
    }

    #[inline]
    fn descend(&self, mut node: usize, wanted: impl Fn(T) -> bool) -> usize {
        while node < self.leaves {
            node = if wanted(self.nodes[2 * node + 1]) { 2 * node + 1 } else { 2 * node };
        }
        node - self.leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_walk_finds(
            start in prop::collection::vec(0_u32..9, 0..20),
            changes in prop::collection::vec((0_usize..40, 0_u32..9), 0..60),
            end in 0_usize..90,
            least in 1_u32..9,
        ) {
            let mut tree = Tree::new(start.iter().copied());
            let mut plain = start.clone();
            for &(position, value) in &changes {
                tree.set(position, value);
                plain.resize(plain.len().max(position + 1), 0);
                plain[position] = value;
            }
            prop_assert_eq!(tree.all(), plain.iter().copied().max().unwrap_or(0));
            let walked = plain.iter().take(end).rposition_at_least(least);
            prop_assert_eq!(tree.last_below(end, |greatest| greatest >= least), walked);
        }
    }

    trait Walk {
        fn rposition_at_least(self, least: u32) -> Option<usize>;
    }

    impl<'a, I: Iterator<Item = &'a u32>> Walk for I {
        fn rposition_at_least(self, least: u32) -> Option<usize> {
            self.enumerate().filter(|&(_, &value)| value >= least).map(|(position, _)| position).last()
        }
    }
}
