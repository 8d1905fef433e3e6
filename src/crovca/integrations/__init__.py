"""crovca in the libraries that people already use. Each file needs the library that it is named after."""
