"""What `scripts/docs_data` writes into the pages: each public function returns Markdown."""
