"""Inner solvers: `w*(u)`."""
