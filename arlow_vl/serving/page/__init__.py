"""The page of `arlow demo`: a client of the API in plain HTML, CSS and JavaScript."""
