//! A list that is nearly always of one.

/// A list whose first element needs no memory of its own.
pub(crate) struct Few<T> {
    first: Option<T>,
    /// Empty unless there is a first.
    more: Vec<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self {
            first: None,
            more: Vec::new(),
        }
    }
}

impl<T> Few<T> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.first.iter().chain(&self.more)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().chain(&mut self.more)
    }

    pub(crate) fn extend(&mut self, element: Option<T>) {
        match self.first {
            None => self.first = element,
            Some(_) => self.more.extend(element),
        }
    }

    /// The first element that `is` it, or else a new one at the end.
    pub(crate) fn find_or_push(
        &mut self,
        is: impl Fn(&T) -> bool,
        new: impl FnOnce() -> T,
    ) -> &mut T {
        let first = match &mut self.first {
            none @ None => return none.insert(new()),
            Some(first) => first,
        };
        if is(first) {
            return first;
        }
        let at = self.more.iter().position(is).unwrap_or_else(|| {
            self.more.push(new());
            self.more.len() - 1
        });
        &mut self.more[at]
    }

    /// Removes the first element that `is` it.
    pub(crate) fn take(&mut self, is: impl Fn(&T) -> bool) -> Option<T> {
        if self.first.as_ref().is_some_and(&is) {
            let second = (!self.more.is_empty()).then(|| self.more.remove(0));
            return std::mem::replace(&mut self.first, second);
        }
        let at = self.more.iter().position(is)?;
        Some(self.more.remove(at))
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_what_a_vec_does(steps in prop::collection::vec((any::<bool>(), 0u8..5), 0..40)) {
            let (mut few, mut vec) = (Few::default(), Vec::new());
            for (push, n) in steps {
                if push {
                    *few.find_or_push(|(key, _)| *key == n, || (n, 0)) = (n, n);
                    if !vec.contains(&(n, n)) {
                        vec.push((n, n));
                    }
                } else {
                    let at = vec.iter().position(|(key, _)| *key == n);
                    prop_assert_eq!(few.take(|(key, _)| *key == n), at.map(|at| vec.remove(at)));
                }
                prop_assert!(few.iter().eq(&vec));
                prop_assert!(few.iter_mut().eq(&mut vec));
            }
            few.extend(None);
            few.extend(Some((9, 9)));
            vec.push((9, 9));
            prop_assert!(few.into_iter().eq(vec));
        }
    }
}
