"""Which hosts get another version now, and when that stops. Pure: see `plan`; `document` is what is kept of it."""
