"""Views: turning texts into matrices, and keeping the matrices."""
