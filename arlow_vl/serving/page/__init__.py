"""The page for people that `arlow demo` serves: a client of the API in HTML, CSS and JavaScript, without a library."""
