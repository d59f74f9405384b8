"""Linear solvers that lineax lacks; each is a lineax solver and works in any lineax code."""
