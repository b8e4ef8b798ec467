"""nano's world, pure and seeded, without torch: pictures, and questions with the right answers."""
