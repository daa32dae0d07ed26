"""An ordinary client over HTTP that measures. Imports neither gateway nor backends."""
