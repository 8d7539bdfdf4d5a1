//! The trigger: one signed HTTP request to the application.

pub mod sign;
