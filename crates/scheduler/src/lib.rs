//! Which tokens run in the next step: admit, plan, apply. Pure and synchronous.
